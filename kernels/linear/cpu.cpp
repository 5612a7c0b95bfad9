// Products with a matrix of weights, then a rectifier where one is wanted, and the gradients of weights and bias, in
// float32 on the CPU, as operators of torch.
//
// A tile of the result, ROWS x 2 vectors, stays in registers while its terms are added up: a number of the left matrix
// times a vector of the right one. Both are laid out anew on the way, in strides that the compiler knows and that no
// cache mistakes for one another: the left one in blocks, of TALL rows and DEEP terms, the right one as columns of
// vectors.
#include "../operators.h"
#include "../pages.h"

namespace linear {

using lanes::Lanes;
using lanes::W;
using operators::Optional;
using operators::Tensor;
using parallel::Scratch;
using tiles::View;
using tiles::Window;

constexpr int ROWS = W == 16 ? 14 : 6;  // so that a tile, two vectors and a number fill the registers
constexpr int WIDE = 16 * W;

// How many parts of a size there are, or their size if there are so many; at least 1.
int64_t parts(int64_t whole, int64_t of) { return std::max<int64_t>(1, (whole + of - 1) / of); }

int64_t vectors(int64_t columns) { return (columns + W - 1) / W; }

// The left matrix as it lies in memory, in lines of neighbours: 0 where the mask, if there is one, is not positive.
struct Left {
    View numbers, mask;

    Left(const Tensor& matrix, const Optional& given) : numbers(operators::float_view(matrix)), mask(operators::float_view(given)) {
        for (const View& view : {numbers, mask})
            if (view.data && view.step != 1 && matrix.size(1) > 1) throw std::invalid_argument("expected lines of neighbours");
    }

    void copy(float* to, int64_t line, int64_t first, int64_t length) const {
        const float* from = numbers.at(0, line, first);
        if (!mask) return (void)std::memcpy(to, from, length * sizeof(float));
        const float* by = mask.at(0, line, first);
        int64_t n = 0;
        for (; n + W <= length; n += W) lanes::store(to + n, lanes::load(by + n) <= 0.0f ? Lanes{} : lanes::load(from + n));
        for (; n < length; ++n) to[n] = by[n] <= 0.0f ? 0.0f : from[n];
    }
};

// A block of the left matrix. by_rows: a line is a row's terms; else it is a term's rows. There is a gap after each.
template <bool by_rows>
struct Block {
    static constexpr int TALL = (by_rows ? 8 : 32) * ROWS, DEEP = by_rows ? 256 : 128;
    static constexpr int LINE = (by_rows ? DEEP : TALL) + W, ROW = by_rows ? LINE : 1, TERM = by_rows ? 1 : LINE;
    float* at;

    explicit Block(Scratch& scratch)
        : at(reinterpret_cast<float*>(scratch.take((by_rows ? TALL : DEEP) * LINE / W + 1))) {}

    void copy(const Left& left, int64_t row, int64_t term, int rows, int terms) const {
        const int lines = by_rows ? rows : terms, length = by_rows ? terms : rows;
        const int64_t line = by_rows ? row : term, first = by_rows ? term : row;
        for (int i = 0; i < lines; ++i) left.copy(at + i * LINE, line + i, first, length);
    }

    // To so many sums, one for each row, over the terms.
    void add_up(float* sums, int rows, int terms) const {
        static_assert(!by_rows);
        for (int row = 0; row < rows; row += W) {
            Lanes sum{};
            for (int k = 0; k < terms; ++k) sum += lanes::load(at + k * TERM + row);
            for (int i = 0; i < std::min(W, rows - row); ++i) sums[row + i] += sum[i];
        }
    }
};

// Rows of neighbouring numbers that will be read next: they come from memory while others are computed with.
struct Ahead {
    const float* from;
    int64_t stride, rows, length;

    // The i-th of so many parts. Always inlined: GCC drops calls of what only fetches ahead.
    LANES_INLINE void fetch(int64_t i, int64_t parts) const {
        for (int64_t row = rows * i / parts; row < rows * (i + 1) / parts; ++row)
            for (int64_t n = 0; n < length; n += 64 / sizeof(float)) __builtin_prefetch(from + row * stride + n, 0, 2);
    }
};

// The result or, while there are more terms to come, their sum so far.
struct Result {
    float* at;
    int64_t stride, columns;  // the last vector of a row may be too wide
    const float* from;        // what the terms are added to, if anything: itself, or a bias
    int64_t from_stride;
    bool rectified;  // negative sums become 0

    template <bool whole>
    LANES_INLINE void add(int row, int64_t column, Lanes sum) const {
        const int64_t bytes = whole ? sizeof sum : (columns - column) * sizeof(float);
        Lanes before{};
        if (from) std::memcpy(&before, from + row * from_stride + column, bytes);
        sum += before;
        if (rectified) sum = lanes::max(Lanes{}, sum);
        std::memcpy(at + row * stride + column, &sum, bytes);
    }
};

// One tile. `tall` rows of it are computed, though the last may not be wanted.
template <class Of, int tall, int width>
__attribute__((noinline)) void add_tile(const float* left, const Lanes* right, int64_t column_stride, int terms, int rows,
                                        int64_t column, const Result& result) {
    Lanes sums[tall][width]{};
    const auto add_term = [&]() __attribute__((always_inline)) {
        Lanes vector[width];
        LANES_UNROLL
        for (int j = 0; j < width; ++j) vector[j] = right[j * column_stride];
        LANES_UNROLL
        for (int i = 0; i < tall; ++i)
            LANES_UNROLL
            for (int j = 0; j < width; ++j) sums[i][j] += left[i * Of::ROW] * vector[j];
        left += Of::TERM, ++right;
    };
    int k = 0;
    const float* place = result.at + column;
    for (; k < std::min(terms, tall); ++k, place += result.stride) {  // all at once would hold up what is wanted now
        LANES_UNROLL
        for (int j = 0; j < width; ++j) __builtin_prefetch(place + j * W, 1, 3);
        add_term();
    }
    for (; k < terms; ++k) add_term();
    const bool whole = result.columns - column >= width * W;
    LANES_UNROLL
    for (int i = 0; i < tall; ++i) {
        if (i >= rows) break;
        LANES_UNROLL
        for (int j = 0; j < width - 1; ++j) result.template add<true>(i, column + j * W, sums[i][j]);
        if (whole) result.template add<true>(i, column + (width - 1) * W, sums[i][width - 1]);
        else result.template add<false>(i, column + (width - 1) * W, sums[i][width - 1]);
    }
}

// The lowest tile that has so many rows.
template <class Of, int width, int tall = ROWS>
auto tile_of(int rows) {
    if constexpr (tall > 2)
        if (rows <= tall - 2) return tile_of<Of, width, tall - 2>(rows);
    return add_tile<Of, tall, width>;
}

// A block times columns of vectors, `column_stride` apart.
template <bool by_rows>
void add_block(const Block<by_rows>& block, const Lanes* right, int64_t column_stride, int rows, int terms,
               const Result& result, const Ahead& left_ahead, const Ahead& right_ahead = {}) {
    using Of = Block<by_rows>;
    const int64_t tiles = (result.columns + 2 * W - 1) / (2 * W) * ((rows + ROWS - 1) / ROWS);
    int64_t done = 0;
    for (int64_t column = 0; column < result.columns; column += 2 * W, right += 2 * column_stride)
        for (int row = 0; row < rows; row += ROWS, ++done) {
            left_ahead.fetch(done, tiles);
            right_ahead.fetch(done, tiles);
            Result tile = result;
            tile.at += row * result.stride;
            if (tile.from) tile.from += row * result.from_stride;
            const int tall = std::min(ROWS, rows - row);
            const auto add = result.columns - column > W ? tile_of<Of, 2>(tall) : tile_of<Of, 1>(tall);
            add(block.at + row * Of::ROW, right, column_stride, terms, tall, column, tile);
        }
}

// As product in cpu.py.
std::tuple<Tensor> product(const Tensor& x, const Optional& mask, const Tensor& weight, const Optional& bias, bool relu) {
    const int64_t rows = x.size(0), terms = x.size(1), columns = weight.size(0);
    Tensor out = operators::empty({rows, columns});
    const Left left(x, mask);
    const View right = operators::float_view(weight);
    const View added = operators::float_view(bias);
    float* to = operators::floats(out);
    pages::make_large(to, rows * columns * sizeof(float));
    if (added && added.channel != 1 && columns > 1) throw std::invalid_argument("expected a bias of neighbours");
    const int64_t threads = operators::threads(rows * terms * columns);
    constexpr int DEEP = Block<true>::DEEP;
    const int64_t most = std::min<int64_t>(Block<true>::TALL, parts(parts(rows, 4 * threads), ROWS) * ROWS);  // of a task
    Scratch memory;
    Lanes* packed = memory.take(vectors(columns) * terms);
    operators::run(vectors(columns), threads, [&](int64_t i, Scratch&) {
        tiles::load(packed + i * terms, right, Window(0, i * W, columns, 0, terms));
    });
    operators::run((rows + most - 1) / most, threads, [&](int64_t task, Scratch& scratch) {
        const Block<true> block(scratch);
        const int64_t row = task * most;
        const int tall = static_cast<int>(std::min(most, rows - row));
        for (int64_t term = 0; term < terms || term == 0; term += DEEP) {
            const int deep = static_cast<int>(std::min<int64_t>(DEEP, terms - term));
            block.copy(left, row, term, tall, deep);
            // The rest of these rows or, with as many tasks as threads between, the next ones for this thread.
            const bool last = term + DEEP >= terms;
            float* at = to + row * columns;
            const Result result{at, columns, columns, term == 0 ? added.data : at, term == 0 ? 0 : columns, relu && last};
            const int64_t next = last ? row + threads * most : row, term_next = last ? 0 : term + DEEP;
            add_block(block, packed + term, terms, tall, deep, result,
                      {left.numbers.at(0, next, term_next), left.numbers.channel, std::min(most, rows - next),
                       std::min<int64_t>(DEEP, terms - term_next)});
        }
    });
    return {std::move(out)};
}

// How the gradient of (rows, columns) weights, a sum of so many terms, is cut: into pieces of the matrix and, where
// these are few, into segments of the terms or, where these are few too, into smaller pieces. It depends on the shapes
// alone: so does the order of the sums.
struct Cut {
    int64_t tall, wide, down, across, segments, deep;  // rows and columns of a piece; pieces; terms of a segment

    Cut(int64_t rows, int64_t columns, int64_t terms) {
        constexpr int64_t ENOUGH = 16, FEW = 4, TALL = Block<false>::TALL, LEAST = 4 * Block<false>::DEEP;
        down = parts(rows, TALL), across = parts(columns, WIDE);
        segments = std::max<int64_t>(1, std::min(parts(ENOUGH, down * across), terms / LEAST));
        const int64_t more = parts(FEW, segments * down * across);
        if (rows > columns) down *= std::min(more, parts(rows, 2 * ROWS));
        else across *= std::min(more, parts(columns, 2 * W));
        tall = parts(parts(rows, down), ROWS) * ROWS;
        wide = parts(parts(columns, across), 2 * W) * 2 * W;
        deep = parts(terms, segments);
    }
};

// So many columns from `first` on, and terms from `term` on, as columns of vectors that are `stride` apart.
void pack(Lanes* packed, int64_t stride, const View& right, int64_t first, int64_t columns, int64_t term, int terms) {
    int64_t column = right.channel == 1 ? columns / W * W : 0;  // these row by row, as they lie in memory
    for (int t = 0; t < terms; ++t)
        for (int64_t i = 0; i < column; i += W)
            packed[i / W * stride + t] = lanes::load(right.at(0, first + i, term + t));
    for (; column < columns; column += W)
        tiles::load(packed + column / W * stride, right, Window(0, first + column, first + columns, term, terms));
}

// As weight_gradient in cpu.py.
std::tuple<Tensor, Optional> weight_gradient(const Tensor& dout, const Optional& mask, const Tensor& x, bool bias) {
    const int64_t terms = x.size(0), rows = dout.size(1), columns = x.size(1);
    const Left left(dout, mask);
    const View by_rows = operators::float_view(x);
    const View right{by_rows.data, 0, by_rows.step, by_rows.channel};  // lanes are columns, steps are terms
    const Cut cut(rows, columns, terms);
    constexpr int DEEP = Block<false>::DEEP;
    const std::vector<int64_t> sizes{cut.segments, rows, columns};
    Tensor sums = operators::empty({sizes.begin() + (cut.segments == 1), sizes.end()});
    Optional of_bias = bias ? Optional(operators::empty({cut.segments, rows})) : std::nullopt;
    float *to = operators::floats(sums), *to_bias = bias ? operators::floats(*of_bias) : nullptr;
    const int64_t tasks = cut.segments * cut.down * cut.across;
    operators::run(tasks, operators::threads(rows * columns * terms), [&](int64_t task, Scratch& scratch) {
        const Block<false> block(scratch);
        Lanes* packed = scratch.take(WIDE / W * (DEEP + 1));
        const int64_t segment = task / (cut.down * cut.across), row = task / cut.across % cut.down * cut.tall;
        const int64_t column = task % cut.across * cut.wide;
        const int64_t wide = std::max<int64_t>(0, std::min(cut.wide, columns - column));
        const int tall = static_cast<int>(std::max<int64_t>(0, std::min(cut.tall, rows - row)));
        float* piece = to + (segment * rows + row) * columns + column;
        float* piece_of_bias = to_bias && column == 0 ? to_bias + segment * rows + row : nullptr;
        if (piece_of_bias) std::fill_n(piece_of_bias, tall, 0.0f);
        const int64_t begin = segment * cut.deep, end = std::min(begin + cut.deep, terms);
        for (int64_t term = begin; term < end || term == begin; term += DEEP) {
            const int deep = static_cast<int>(std::min<int64_t>(DEEP, end - term));
            block.copy(left, row, term, tall, deep);
            if (piece_of_bias) block.add_up(piece_of_bias, tall, deep);
            pack(packed, DEEP + 1, right, column, wide, term, deep);
            const int64_t next = term + DEEP, deep_next = std::min<int64_t>(DEEP, end - next);
            const Result result{piece, columns, wide, term == begin ? nullptr : piece, columns, false};
            add_block(block, packed, DEEP + 1, tall, deep, result,
                      {left.numbers.at(0, next, row), left.numbers.channel, deep_next, tall},
                      {right.at(0, column, next), right.step, deep_next, wide});
        }
    });
    if (bias) of_bias = operators::sum_of_first(*of_bias);
    return {cut.segments == 1 ? std::move(sums) : operators::sum_of_first(sums), std::move(of_bias)};
}

const auto registered =
    operators::Registration().add<product>("linear_cpu").add<weight_gradient>("linear_cpu_weight");

}  // namespace linear
