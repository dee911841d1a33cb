"""The decode step on a GPU: fused kernels, laid out as launches and replayed as one CUDA graph.

packed.py     weights as the kernels read them
launches.py   one launch as something to run
model.py      the whole step
gemv.cu       matrices, the choice
stage.cuh     how a matrix lies, and is multiplied
inputs.cuh    what it meets: inputs in fixed point
norm.cuh      the residual stream, normed
attention.cuh split over positions
device.cuh    what all of them share
embedding.py  what a step begins with (Triton)
"""
