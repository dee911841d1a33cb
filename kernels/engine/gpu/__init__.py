"""The decode step on a GPU: fused kernels, laid out as launches and replayed as one CUDA graph.

packed.py    weights as the kernels read them     launches.py  one launch as something to run
gemv.cu      matrices, norms, the choice          attention.cuh  split over positions
device.cuh   what both share                      embedding.py   what a step begins with (Triton)
model.py     the whole step
"""
