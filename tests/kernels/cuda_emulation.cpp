// One specialisation of the scan's CUDA kernels, compiled for the CPU.
#define EMULATED
#include "cuda_emulation.h"
#include "cuda.cu"

static void call(Kernel kernel, const Problem* problem) { kernel(*problem); }
extern "C" long size_of_problem() { return sizeof(Problem); }
