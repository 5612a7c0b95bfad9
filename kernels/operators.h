// Operators of torch written in C++: their tensors, and how they become known to torch.
//
// torch is reached through its stable C interface, which serves every torch since 2.10. The functions in use are declared
// here, as the headers that hold them take longer to compile than most operations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "tiles.h"

extern "C" {
using AOTITorchError = int32_t;  // 0 is success
using StableIValue = uint64_t;   // a number, or the address of what is larger
struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
struct TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;

AOTITorchError aoti_torch_library_init_impl(
    const char* ns, const char* k, const char* file, uint32_t line, TorchLibraryHandle* ret_new_torch_lib);
AOTITorchError torch_library_impl(
    TorchLibraryHandle self, const char* name, void (*fn)(StableIValue*, uint64_t, uint64_t),
    uint64_t extension_build_version);
AOTITorchError torch_call_dispatcher(
    const char* opName, const char* overloadName, StableIValue* stack, uint64_t extension_build_version);
AOTITorchError torch_get_num_threads(uint32_t* out_num_threads);

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle orig_handle, AtenTensorHandle* new_handle);
AOTITorchError aoti_torch_empty_strided(
    int64_t ndim, const int64_t* sizes_ptr, const int64_t* strides_ptr, int32_t dtype, int32_t device_type,
    int32_t device_index, AtenTensorHandle* ret_new_tensor);
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** ret_data_ptr);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* ret_dim);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** ret_sizes);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** ret_strides);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* ret_dtype);
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* ret_is_contiguous);
int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float16();

// Multiply-adds that pay for waking a thread; native.py sets it.
int64_t work_per_thread = INT64_MAX;
}

namespace operators {

constexpr uint64_t INTERFACE = (2ull << 56) | (10ull << 48);  // torch's version whose conventions are followed

inline void expect(AOTITorchError error) {
    if (error) throw std::runtime_error("torch refused a call through its C interface");
}

// A reference to a tensor.
class Tensor {
    AtenTensorHandle handle;

   public:
    explicit Tensor(AtenTensorHandle owned) : handle(owned) {}
    Tensor(Tensor&& other) noexcept : handle(other.release()) {}
    Tensor& operator=(Tensor&& other) noexcept { return std::swap(handle, other.handle), *this; }
    ~Tensor() { if (handle) aoti_torch_delete_tensor_object(handle); }

    AtenTensorHandle get() const { return handle; }
    AtenTensorHandle release() { return std::exchange(handle, nullptr); }

    int64_t dim() const {
        int64_t dim;
        return expect(aoti_torch_get_dim(handle, &dim)), dim;
    }
    const int64_t* sizes() const {
        int64_t* sizes;
        return expect(aoti_torch_get_sizes(handle, &sizes)), sizes;
    }
    const int64_t* strides() const {
        int64_t* strides;
        return expect(aoti_torch_get_strides(handle, &strides)), strides;
    }
    int64_t size(int64_t axis) const { return sizes()[axis < 0 ? axis + dim() : axis]; }
    int64_t numel() const { return std::accumulate(sizes(), sizes() + dim(), int64_t{1}, std::multiplies<>()); }
    void* data() const {
        void* data;
        return expect(aoti_torch_get_data_ptr(handle, &data)), data;
    }
    int32_t dtype() const {
        int32_t dtype;
        return expect(aoti_torch_get_dtype(handle, &dtype)), dtype;
    }
    bool is_contiguous() const {
        bool contiguous;
        return expect(aoti_torch_is_contiguous(handle, &contiguous)), contiguous;
    }
};

using Optional = std::optional<Tensor>;

// Uninitialised memory. Raises std::bad_alloc if there is not enough.
inline Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
    AtenTensorHandle handle;
    if (aoti_torch_empty_strided(dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle))
        throw std::bad_alloc();
    return Tensor(handle);
}

// Contiguous float32.
inline Tensor empty(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(1, sizes[i])) strides[i] = stride;
    return empty(sizes.size(), sizes.data(), strides.data(), aoti_torch_dtype_float32());
}

// The sum over the first axis of contiguous float32.
inline Tensor sum_of_first(const Tensor& parts) {
    Tensor sum = empty({parts.sizes() + 1, parts.sizes() + parts.dim()});
    const int64_t count = sum.numel();
    const float* from = static_cast<float*>(parts.data());
    float* to = static_cast<float*>(sum.data());
    std::fill_n(to, count, 0.0f);
    for (int64_t part = 0; part < parts.size(0); ++part, from += count) {
        int64_t i = 0;
        for (; i + lanes::W <= count; i += lanes::W) lanes::store(to + i, lanes::load(to + i) + lanes::load(from + i));
        for (; i < count; ++i) to[i] += from[i];
    }
    return sum;
}

// As torch.empty_like.
inline Tensor empty_like(const Tensor& tensor) {
    if (tensor.is_contiguous()) return empty(tensor.dim(), tensor.sizes(), tensor.strides(), tensor.dtype());
    AtenTensorHandle same;
    expect(aoti_torch_new_tensor_handle(tensor.get(), &same));
    StableIValue stack[6] = {reinterpret_cast<StableIValue>(same)};  // and None for every option
    if (torch_call_dispatcher("aten::empty_like", "", stack, INTERFACE)) throw std::bad_alloc();
    return Tensor(reinterpret_cast<AtenTensorHandle>(stack[0]));
}

inline Optional empty_like(const Optional& tensor) {
    return tensor ? Optional(empty_like(*tensor)) : std::nullopt;
}

inline tiles::TypedView::Type type(const Tensor& tensor) {
    const int32_t dtype = tensor.dtype();
    if (dtype == aoti_torch_dtype_float32()) return tiles::TypedView::FLOAT;
    if (dtype == aoti_torch_dtype_bfloat16()) return tiles::TypedView::BFLOAT16;
    if (dtype == aoti_torch_dtype_float16()) return tiles::TypedView::FLOAT16;
    throw std::invalid_argument("expected tensors of float32, bfloat16 or float16");
}

// (B, D, L) as it is; (D, N) the same for every row; (D,) the same for every row and step.
inline tiles::TypedView view(const Tensor& tensor) {
    const int64_t* strides = tensor.strides();
    void* data = tensor.data();
    switch (tensor.dim()) {
        case 1: return {data, type(tensor), 0, strides[0], 0};
        case 2: return {data, type(tensor), 0, strides[0], strides[1]};
        default: return {data, type(tensor), strides[0], strides[1], strides[2]};
    }
}

inline tiles::TypedView view(const Optional& tensor) { return tensor ? view(*tensor) : tiles::TypedView{}; }

// The same of a tensor that must be float32.
inline tiles::View float_view(const Tensor& tensor) {
    if (type(tensor) != tiles::TypedView::FLOAT) throw std::invalid_argument("expected tensors of float32");
    const tiles::TypedView any = view(tensor);
    return {static_cast<float*>(any.data), any.row, any.channel, any.step};
}

inline tiles::View float_view(const Optional& tensor) { return tensor ? float_view(*tensor) : tiles::View{}; }

// (B, D) in float32: one step of every row and channel.
inline tiles::View column_view(const Tensor& tensor) {
    const tiles::View matrix = float_view(tensor);
    return {matrix.data, matrix.channel, matrix.step, 0};
}

inline tiles::View column_view(const Optional& tensor) { return tensor ? column_view(*tensor) : tiles::View{}; }

// The numbers of a tensor that must be contiguous float32.
inline float* floats(const Tensor& tensor) {
    if (tensor.dtype() != aoti_torch_dtype_float32() || !tensor.is_contiguous())
        throw std::invalid_argument("expected contiguous tensors of float32");
    return static_cast<float*>(tensor.data());
}

// How many threads so many multiply-adds deserve, at most torch's.
inline int64_t threads(int64_t work) {
    uint32_t most;
    expect(torch_get_num_threads(&most));
    return std::min<int64_t>(most, 1 + work / work_per_thread);
}

// work(task, scratch) for every task; see parallel.h. Raises std::bad_alloc if memory runs out.
template <class Work>
void run(int64_t tasks, int64_t threads, const Work& work) {
    if (!parallel::run(tasks, threads, work)) throw std::bad_alloc();
}

// What torch hands over, and what it is handed.
template <class T>
struct Value {
    static T take(StableIValue value) {
        T result;
        std::memcpy(&result, &value, sizeof(T));
        return result;
    }
};

template <>
struct Value<Tensor> {
    static Tensor take(StableIValue value) { return Tensor(reinterpret_cast<AtenTensorHandle>(value)); }
    static StableIValue give(Tensor& tensor) { return reinterpret_cast<StableIValue>(tensor.release()); }
};

template <>
struct Value<Optional> {
    static Optional take(StableIValue value) {
        auto* inner = reinterpret_cast<StableIValue*>(value);
        if (!inner) return std::nullopt;
        Optional result = Value<Tensor>::take(*inner);
        delete inner;
        return result;
    }
    // An absent result is an empty tensor: torch knows no optional ones.
    static StableIValue give(Optional& tensor) {
        if (!tensor) tensor.emplace(empty({0}));
        return Value<Tensor>::give(*tensor);
    }
};

// A function as torch calls it: the arguments lie on a stack, where the results replace them.
template <auto function>
struct Boxed;

template <class... Results, class... Arguments, std::tuple<Results...> (*function)(Arguments...)>
struct Boxed<function> {
    static void call(StableIValue* stack, uint64_t, uint64_t) {
        call(stack, std::index_sequence_for<Arguments...>(), std::index_sequence_for<Results...>());
    }

    template <size_t... argument, size_t... result>
    static void call(StableIValue* stack, std::index_sequence<argument...>, std::index_sequence<result...>) {
        std::tuple<std::decay_t<Arguments>...> arguments{Value<std::decay_t<Arguments>>::take(stack[argument])...};
        std::tuple<Results...> results = std::apply(function, arguments);
        ((stack[result] = Value<Results>::give(std::get<result>(results))), ...);
    }
};

// Makes functions what archlab's operators do on the CPU, for as long as the process lives.
class Registration {
    TorchLibraryHandle library;

   public:
    Registration() { expect(aoti_torch_library_init_impl("archlab", "CPU", __FILE__, __LINE__, &library)); }

    template <auto function>
    Registration& add(const char* name) {
        expect(torch_library_impl(library, name, Boxed<function>::call, INTERFACE));
        return *this;
    }
};

}  // namespace operators
