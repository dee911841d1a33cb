"""Every tensor of a text decoder by name, with its shape: what a checkpoint of this size holds."""

from .config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Return name → shape.

    Raises:
        ValueError: a family whose names aren't written down here.
    """
    if config.family != "gemma4":
        raise ValueError(f"random weights are made for gemma4 models, not {config.family}")
    hidden, vocab, size = config.hidden_size, config.vocab_size, config.per_layer_size
    packed = config.num_layers * size
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.tied_head:
        shapes["lm_head.weight"] = (vocab, hidden)
    if size:
        shapes["model.embed_tokens_per_layer.weight"] = (vocab, packed)
        shapes["model.per_layer_model_projection.weight"] = (packed, hidden)
        shapes["model.per_layer_projection_norm.weight"] = (size,)
    for index in range(config.num_layers):
        layer = _attention(config, index) | _rest(config, index)
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def _attention(config: ModelConfig, index: int) -> Shapes:
    hidden, head_dim = config.hidden_size, config.head_dims[index]
    queries, keys = config.num_heads * head_dim, config.kv_heads[index] * head_dim
    shapes: Shapes = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (head_dim,),
    }
    if config.kv_sources[index] is None:
        shapes["self_attn.k_proj.weight"] = (keys, hidden)
        shapes["self_attn.k_norm.weight"] = (head_dim,)
        if not config.values_are_keys[index]:
            shapes["self_attn.v_proj.weight"] = (keys, hidden)
    return shapes


def _rest(config: ModelConfig, index: int) -> Shapes:
    hidden, wide, size = config.hidden_size, config.intermediate_sizes[index], config.per_layer_size
    shapes: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "pre_feedforward_layernorm.weight": (hidden,),
        "post_feedforward_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
        "layer_scalar": (1,),
    }
    if size:
        shapes["per_layer_input_gate.weight"] = (size, hidden)
        shapes["per_layer_projection.weight"] = (hidden, size)
        shapes["post_per_layer_input_norm.weight"] = (hidden,)
    return shapes
