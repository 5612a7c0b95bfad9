// The functions of NVIDIA's driver that kernels/cuda_driver.py calls, with the driver's own signatures: they note what
// they are given and start nothing.
#include <cstddef>
#include <cstring>

typedef void *Pointer;
typedef unsigned Number;
struct Notes {
    Number grid[3], block[3], shared, launches, loads, attributes;
    int attribute, attribute_value, retained, refused;
    Pointer stream, function, extra, context;
    char kernel[32];
    unsigned char image[16], argument[64];
};
static Notes notes;
static char a_context, a_module, a_function;

extern "C" {
Notes *stub_notes() { return &notes; }
int cuCtxGetCurrent(Pointer *context) { return *context = notes.context, 0; }
int cuDevicePrimaryCtxRetain(Pointer *context, int device) { return notes.retained = device, *context = &a_context, 0; }
int cuCtxSetCurrent(Pointer context) { return notes.context = context, 0; }
int cuModuleLoadData(Pointer *module, const void *image) {
    memcpy(notes.image, image, sizeof notes.image);
    return ++notes.loads, *module = &a_module, 0;
}
int cuModuleGetFunction(Pointer *function, Pointer module, const char *name) {
    strncpy(notes.kernel, name, sizeof notes.kernel - 1);
    return *function = &a_function, module == &a_module ? 0 : 400;
}
int cuFuncSetAttribute(Pointer function, int attribute, int value) {
    notes.attribute = attribute, notes.attribute_value = value, ++notes.attributes;
    return function == &a_function ? 0 : 400;
}
int cuGetErrorString(int, const char **text) { return *text = "invalid argument", 0; }
int cuLaunchKernel(Pointer function, Number x, Number y, Number z, Number block_x, Number block_y, Number block_z,
                   Number shared, Pointer stream, void **arguments, void **extra) {
    if (notes.refused) return notes.refused;
    Number grid[3] = {x, y, z}, block[3] = {block_x, block_y, block_z};
    memcpy(notes.grid, grid, sizeof grid), memcpy(notes.block, block, sizeof block);
    notes.shared = shared, notes.stream = stream, notes.function = function, notes.extra = extra;
    memcpy(notes.argument, arguments[0], sizeof notes.argument);
    return ++notes.launches, 0;
}
}
