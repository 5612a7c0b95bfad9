// The selective scan on the GPU: see cuda_common.cuh for the macros that make a specialisation, cuda.py for its use.
#include "cuda_common.cuh"
#include "cuda_tiles.cuh"
#if BACKWARD
#include "cuda_exchange.cuh"
#include "cuda_stages.cuh"
#include "cuda_backward.cuh"
#include "cuda_gradients.cuh"
#include "cuda_sums.cuh"
#else
#include "cuda_forward.cuh"
#endif
#include "cuda_segments.cuh"
