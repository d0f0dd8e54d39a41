// Arithmetic on vectors of LANES numbers, one of each lane (a fit, a chain or a point).
//
// The vectors are the compiler's own (`vector_size` of GCC and Clang), so that nothing depends on whether the compiler
// vectorises loops. Only functions that are rarely needed, and arguments out of the usual range, go through the C
// library one number after another.
//
// vectors.py puts this file behind the definitions of LANES (lanes of a vector), VALID (how many of these are used,
// from the first), Real (float or double) and Coefficients (of the polynomials for the error function). A condition is
// a vector of integers in which all bits of a lane are set or none, as `condition ? a : b` takes it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
constexpr int DOUBLES = LANES < 8 ? LANES : 8;  // lanes of a vector of doubles: more do not fit in 64 bytes
typedef double Doubles __attribute__((vector_size(DOUBLES * sizeof(double))));
typedef int64_t Longs __attribute__((vector_size(DOUBLES * sizeof(int64_t))));
typedef double Doubles8 __attribute__((vector_size(64)));
typedef float Floats16 __attribute__((vector_size(64)));

template <class V>
struct Of;
template <>
struct Of<Floats> {
    using T = float;
    using I = int32_t;
    using M = Ints;
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float lowest = -104, highest = 89, magic = 12582912.0f, log2_high = 0.693145751953125f, log2_low = 1.42860677e-6f;
};
template <>
struct Of<Doubles> {
    using T = double;
    using I = int64_t;
    using M = Longs;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double lowest = -746, highest = 710, magic = 6755399441055744.0, log2_high = 6.93147180369123816490e-01,
                            log2_low = 1.90821492927058770002e-10;
};
template <bool single>
struct Vector {
    using V = Floats;
};
template <>
struct Vector<false> {
    using V = Doubles;
};
using V = Vector<sizeof(Real) == 4>::V;
using M = Of<V>::M;

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class W = V>
inline W all(typename Of<W>::T number) {
    return number - W{};
}
inline M every(bool is) { return M{} - is; }

template <class W>
constexpr int lanes_of = sizeof(W) / sizeof(typename Of<W>::T);

template <class Condition>
inline bool any(Condition condition) {
    uint64_t parts[sizeof condition / 8], found = 0;
    std::memcpy(parts, &condition, sizeof condition);
    for (uint64_t part : parts) found |= part;
    return found != 0;
}

template <class W, class Function>
inline W one_by_one(W x, Function function) {
    for (int i = 0; i < lanes_of<W>; ++i) x[i] = function(x[i]);
    return x;
}

template <class W, class T, size_t num>
inline W polynomial(const T (&coefficients)[num], W t) {
    W sum = all<W>(coefficients[num - 1]);
    for (size_t k = num - 1; k > 0; --k) sum = sum * t + coefficients[k - 1];
    return sum;
}

template <class W>
inline W choose(typename Of<W>::M condition, W one, W other) {
    return condition ? one : other;
}
template <class W>
inline W absolute(W x) {
    using B = typename Of<W>::M;
    return bits<W>(bits<B>(x) & std::numeric_limits<typename Of<W>::I>::max());
}
template <class W>
inline W with_sign_of(W size, W sign) {
    using B = typename Of<W>::M;
    constexpr auto top = std::numeric_limits<typename Of<W>::I>::min();
    return bits<W>(bits<B>(absolute(size)) | (bits<B>(sign) & top));
}
template <class W>
inline W minimum(W x, W y) {  // as torch's: nan where x or y is nan
    return (x != x) ? x : (x < y ? x : y);
}
template <class W>
inline W maximum(W x, W y) {
    return (x != x) ? x : (x > y ? x : y);
}
template <class W>
inline W square_root(W x) {
    typename Of<W>::T lanes[lanes_of<W>];
    std::memcpy(lanes, &x, sizeof x);
    for (int i = 0; i < lanes_of<W>; ++i) lanes[i] = std::sqrt(lanes[i]);
    std::memcpy(&x, lanes, sizeof x);
    return x;
}
template <class W>
inline W sign(W x) {
    return (x > 0 ? all<W>(1) : W{}) - (x < 0 ? all<W>(1) : W{});
}
template <class W>
inline W floor(W x) {
    return one_by_one(x, [](auto y) { return std::floor(y); });
}

// ---- parts of numbers: one instruction of AVX-512 each, where vectors are as wide as its registers

#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_ia32_scalefpd512_mask)
#define HAS_WIDE_PARTS
#endif
#endif
#ifdef HAS_WIDE_PARTS
template <class W>
constexpr bool is_wide = sizeof(W) == 64;
constexpr int ROUNDING = 4, INTERVAL = 3 | 1 << 2;  // as the processor's flags say; the interval [0.75, 1.5), positive
inline Doubles8 scale(Doubles8 x, Doubles8 n) { return __builtin_ia32_scalefpd512_mask(x, n, x, -1, ROUNDING); }
inline Floats16 scale(Floats16 x, Floats16 n) { return __builtin_ia32_scalefps512_mask(x, n, x, -1, ROUNDING); }
inline Doubles8 get_exponent(Doubles8 x) { return __builtin_ia32_getexppd512_mask(x, x, -1, ROUNDING); }
inline Floats16 get_exponent(Floats16 x) { return __builtin_ia32_getexpps512_mask(x, x, -1, ROUNDING); }
inline Doubles8 get_mantissa(Doubles8 x) { return __builtin_ia32_getmantpd512_mask(x, INTERVAL, x, -1, ROUNDING); }
inline Floats16 get_mantissa(Floats16 x) { return __builtin_ia32_getmantps512_mask(x, INTERVAL, x, -1, ROUNDING); }
inline Doubles8 rough_inverse(Doubles8 x) { return __builtin_ia32_rcp14pd512_mask(x, x, -1); }
inline Floats16 rough_inverse(Floats16 x) { return __builtin_ia32_rcp14ps512_mask(x, x, -1); }
#else
template <class W>
constexpr bool is_wide = false;
#endif

// x 2^n for whole n, which may be far out of range.
template <class W>
inline W times_power_of_2(W x, W n) {
    using O = Of<W>;
    if constexpr (is_wide<W>) {
        return scale(x, n);
    } else {  // as two factors, since a number 2^n may be out of range where the result is not
        const auto whole = bits<typename O::M>(n + O::magic) - bits<typename O::I>(O::magic), half = whole >> 1;
        return x * bits<W>((half + O::bias) << O::mantissa) * bits<W>((whole - half + O::bias) << O::mantissa);
    }
}

// |x| = mantissa 2^exponent with 0.75 <= mantissa < 1.5. The exponent of 0 is -infinity, that of infinity is infinity.
template <class W>
struct Parts {
    W mantissa, exponent;
};
template <class W>
inline Parts<W> parts(W x) {
    using O = Of<W>;
    using T = typename O::T;
    if constexpr (is_wide<W>) {
        const W mantissa = get_mantissa(x), exponent = get_exponent(x);
        return {mantissa, mantissa < 1 ? exponent + 1 : exponent};
    } else {
        constexpr auto three_quarters = sizeof(T) == 4 ? typename O::I(0x3f400000) : typename O::I(0x3fe8000000000000);
        constexpr T smallest = std::numeric_limits<T>::min(), infinity = std::numeric_limits<T>::infinity();
        const W size = absolute(x);
        const auto tiny = size < smallest;
        const W normal = tiny ? size * T(int64_t(1) << O::mantissa) * 2 : size;
        const auto offset = bits<typename O::M>(normal) - three_quarters;
        const W e = __builtin_convertvector(offset >> O::mantissa, W) - (tiny ? all<W>(O::mantissa + 1) : W{});
        const W m = bits<W>((offset & ((typename O::I(1) << O::mantissa) - 1)) + three_quarters);
        const auto usual = (size > 0) & (size < infinity);
        return {usual ? m : all<W>(1), usual ? e : (size == 0 ? all<W>(-infinity) : size)};
    }
}

// x / y for y that is neither tiny nor huge, up to some roundings: a division takes as long as twenty multiplications.
template <class W>
inline W moderate_quotient(W x, W y) {
    if constexpr (is_wide<W>) {
        W inverse = rough_inverse(y);
        inverse = inverse * (2 - y * inverse);
        if constexpr (sizeof(typename Of<W>::T) == 8) inverse = inverse * (2 - y * inverse);
        const W found = x * inverse;
        return found + inverse * (x - y * found);
    } else {
        return x / y;
    }
}

// ---- exponentials and logarithms

// (e^r - 1 - r) / r^2 in r for |r| <= log(2) / 2, and log((1 + s) / (1 - s)) / s^3 - 2 / s^2 in s^2 for |s| <= 0.2:
// polynomials through the functions' values at Chebyshev's points, as vectors.py says.
//
// exp(x) = 2^n e^r.
template <class W>
inline W exponential(W x) {
    using O = Of<W>;
    using T = typename O::T;
    W inside = x < O::lowest ? all<W>(O::lowest) : (x > O::highest ? all<W>(O::highest) : x);
    const W n = (inside * T(1.442695040888963407) + O::magic) - O::magic;
    const W r = (inside - n * O::log2_high) - n * O::log2_low;
    return times_power_of_2(1 + (r + r * r * polynomial(Coefficients<T>::exponential, r)), n);
}

// log((1 + f) 2^e) for -0.25 <= f < 0.5: e log(2) + 2 atanh(s) with s = f / (2 + f).
template <class W>
inline W logarithm_of_parts(W f, W e) {
    using O = Of<W>;
    const W s = moderate_quotient(f, 2 + f), square = s * s;
    const W rest = s * square * polynomial(Coefficients<typename O::T>::logarithm, square);
    return e * O::log2_high + (2 * s + (rest + e * O::log2_low));
}
template <class W>
inline W logarithm(W x) {
    const Parts<W> of = parts(x);
    return x >= 0 ? logarithm_of_parts(of.mantissa - 1, of.exponent) : all<W>(std::numeric_limits<typename Of<W>::T>::quiet_NaN());
}

// The logarithm of a product, whose factors' mantissas are multiplied and whose exponents are added.
template <class W>
inline W factor_mantissa(W x) {
    return x >= 0 ? parts(x).mantissa : all<W>(std::numeric_limits<typename Of<W>::T>::quiet_NaN());
}
template <class W>
inline W factor_exponent(W x) {
    return parts(x).exponent;
}
template <class W>
inline W logarithm_of_product(W mantissas, W exponents) {
    const Parts<W> of = parts(mantissas);
    return logarithm_of_parts(of.mantissa - 1, of.exponent + exponents);
}

template <class W>
inline W log_of_1_plus(W x) {  // the rounding error of 1 + x is put back into the mantissa
    constexpr auto infinity = std::numeric_limits<typename Of<W>::T>::infinity();
    const W u = 1 + x, lost = x - (u - 1);
    const Parts<W> of = parts(u);
    const W put_back = (u > 0) & (u < infinity) ? times_power_of_2(lost, -of.exponent) : W{};
    const W found = logarithm_of_parts((of.mantissa - 1) + put_back, of.exponent);
    return u >= 0 ? found : all<W>(std::numeric_limits<typename Of<W>::T>::quiet_NaN());
}
template <class W>
inline W exp_minus_1(W x) {  // by Kahan's formula, in which the errors of the exponential and of its logarithm cancel
    const W u = exponential(x), below = u - 1;
    const W found = below * x / logarithm(u);
    const auto usual = (u != 1) & (below != -1) & (u < std::numeric_limits<typename Of<W>::T>::infinity());
    return usual ? found : (u == 1 ? x : below);
}
template <class W>
inline W sigmoid(W x) {
    return 1 / (1 + exponential(-x));
}
template <class W>
inline W hyperbolic_tangent(W x) {
    const W e = exp_minus_1(-2 * absolute(x));
    return with_sign_of(-e / (e + 2), x);
}
template <class W>
inline W power(W x, W y) {
    constexpr auto infinity = std::numeric_limits<typename Of<W>::T>::infinity();
    if (any(~((x > 0) & (x < infinity) & (absolute(y) < infinity)))) {
        for (int i = 0; i < lanes_of<W>; ++i) x[i] = std::pow(x[i], y[i]);
        return x;
    }
    return exponential(y * logarithm(x));
}
template <class W>
inline W x_log_y(W x, W y) {
    return y != y ? y : (x == 0 ? W{} : x * logarithm(y));
}
template <class W>
inline W hypotenuse(W x, W y) {
    for (int i = 0; i < lanes_of<W>; ++i) x[i] = std::hypot(x[i], y[i]);
    return x;
}

// ---- the error function and its relatives

// exp(x^2) erfc(x) for x >= 0: 1 / (1 + 2 x) times a polynomial in (x - 3.75) / (x + 3.75) (Schonfelder 1978, Chebyshev
// expansions for the error and related functions).
template <class W>
inline W erfcx_positive(W x) {
    const W t = x < std::numeric_limits<typename Of<W>::T>::max() ? 1 - 7.5f / (x + 3.75f) : all<W>(1);
    return polynomial(Coefficients<typename Of<W>::T>::erfcx, t) / (1 + 2 * x);
}
template <class W>
inline W exp_of_square(W x, typename Of<W>::T sign) {  // exp(sign x^2), corrected for the rounding error of the square
    const W high = x * x;
    W low;
    for (int i = 0; i < lanes_of<W>; ++i) low[i] = std::fma(x[i], x[i], -high[i]);
    const W found = exponential(sign * high);
    return high < Of<W>::highest * 2 ? found + found * (sign * low) : found;
}
template <class W>
inline W erfcx(W x) {
    const W found = erfcx_positive(absolute(x));
    if (!any(x < 0)) return found;
    return x < 0 ? 2 * exp_of_square(x, 1) - found : found;
}
template <class W>
inline W erfc(W x) {
    const W size = absolute(x), tail = exp_of_square(size, -1) * erfcx_positive(size);
    return x < 0 ? 2 - tail : tail;
}
template <class W>
inline W erf(W x) {
    const W size = absolute(x);
    const W inside = x * polynomial(Coefficients<typename Of<W>::T>::erf, size < 1 ? 2 * x * x - 1 : W{});
    return size < 1 ? inside : with_sign_of(1 - erfc(size), x);
}
// The log of the standard normal's cumulative distribution function.
template <class W>
inline W log_ndtr(W x) {
    using T = typename Of<W>::T;
    const W y = x * T(0.70710678118654752440), tail = logarithm(erfcx_positive(absolute(y)) / 2) - y * y;
    return x < -1 ? tail : log_of_1_plus(-erfc(y) / 2);
}
// The standard normal's quantile: a rational approximation (Hastings 1955, Approximations for digital computers),
// improved by Halley's steps on the logarithm of the cumulative distribution function.
template <class W>
inline W ndtri(W p) {
    using T = typename Of<W>::T;
    const W q = p < T(0.5) ? p : 1 - p;
    const W log_q = logarithm(q), t = square_root(-2 * log_q);
    W x = t - (2.515517f + t * (0.802853f + t * 0.010328f)) / (1 + t * (1.432788f + t * (0.189269f + t * 0.001308f)));
    for (int k = 0; k < (sizeof(T) == 4 ? 1 : 2); ++k) {
        const W mills = erfcx(x * T(0.70710678118654752440));
        const W excess = logarithm(mills / 2) - x * x / 2 - log_q, hazard = T(0.79788456080286535588) / mills;
        x = x + excess / (hazard + excess * (hazard - x) / 2);
    }
    x = q == 0 ? all<W>(std::numeric_limits<T>::infinity()) : x;
    return p < T(0.5) ? -x : x;
}
template <class W>
inline W erfinv(W y) {
    using T = typename Of<W>::T;
    const W size = absolute(y);
    const W x = ndtri((1 - size) / 2) * T(-0.70710678118654752440);
    const W nearer = x - (erf(x) - size) * exponential(x * x) * T(0.88622692545275801365);
    const W square = size * size;
    const W series = size * T(0.88622692545275801365) * (1 + square * (T(0.26179938779914943654) + square * T(0.14393173084921979)));
    const W found = size < T(0.5) ? nearer : x;
    return with_sign_of(size < T(1e-3) ? series : found, y);
}

// ---- the gamma function and its derivatives: the recurrence raises the argument to 8 or more, where Stirling's series
// holds

template <class W>
struct Raised {
    // The raised argument, and of the factors x, x + 1, ... below it: their product, its derivative in x, and the sum of
    // 1 / factor^2.
    W x, product, slope, squares;
};
template <class W>
inline Raised<W> raised(W x) {
    Raised<W> r{x, all<W>(1), W{}, W{}};
    for (int k = 0; k < 8; ++k) {
        const auto low = r.x < 8;
        r.slope = low ? r.slope * r.x + r.product : r.slope;
        r.squares += low ? 1 / (r.x * r.x) : W{};
        r.product = low ? r.product * r.x : r.product;
        r.x = low ? r.x + 1 : r.x;
    }
    return r;
}
constexpr double BERNOULLI[] = {1.0 / 6, -1.0 / 30, 1.0 / 42, -1.0 / 30, 5.0 / 66, -691.0 / 2730, 7.0 / 6, -3617.0 / 510};

template <class W>
inline W log_gamma(W x) {
    using T = typename Of<W>::T;
    if (any(~(x > 0))) return one_by_one(x, [](auto y) { return std::lgamma(y); });
    const Raised<W> r = raised(x);
    const W inverse = 1 / r.x, square = inverse * inverse;
    W series{};
    for (int n = 8; n > 0; --n) series = series * square + T(BERNOULLI[n - 1] / (2 * n * (2 * n - 1)));
    const W found = (r.x - T(0.5)) * logarithm(r.x) - r.x + T(0.91893853320467274178) + series * inverse;
    return found - logarithm(r.product);
}
template <class W>
inline W digamma(W x) {
    using T = typename Of<W>::T;
    const auto reflected = x < 0;
    const Raised<W> r = raised(reflected ? 1 - x : x);
    const W square = 1 / (r.x * r.x);
    W series{};
    for (int n = 8; n > 0; --n) series = (series + T(BERNOULLI[n - 1] / (2 * n))) * square;
    W found = logarithm(r.x) - T(0.5) / r.x - series - r.slope / r.product;
    if (any(reflected)) {
        const double pi = 3.14159265358979323846;
        const W cotangent = one_by_one(x, [pi](auto y) { return T(pi / std::tan(pi * (y - std::floor(y)))); });
        found = reflected ? found - cotangent : found;
    }
    return found;
}
template <class W>
inline W trigamma(W x) {
    using T = typename Of<W>::T;
    if (any(~(x > 0))) return one_by_one(x, [](auto) { return std::numeric_limits<T>::quiet_NaN(); });
    const Raised<W> r = raised(x);
    const W inverse = 1 / r.x, square = inverse * inverse;
    W series{};
    for (int n = 8; n > 0; --n) series = (series + T(BERNOULLI[n - 1])) * square;
    return inverse + T(0.5) * square + series * inverse + r.squares;
}

// dx/da of x ~ Gamma(a, 1) where its cumulative distribution function stays the same, by the formulas of torch's
// `_standard_gamma_grad`, in double precision as there.
inline Doubles gamma_small(Doubles a, Doubles x) {  // for small x, by the series of the distribution function
    Doubles numerator = all<Doubles>(1), denominator = a;
    Doubles one = 1 / a, two = one * one;
    for (int i = 1; i <= 5; ++i) {
        numerator *= -x / i;
        denominator += 1;
        const Doubles ratio = numerator / denominator;
        one += ratio;
        two += ratio / denominator;
    }
    // of the powers of x in that function and in the density one is left
    const Doubles found = -((logarithm(x) - digamma(a)) * one - two) * x * exponential(x);
    return found == found ? found : Doubles{};
}
inline Doubles gamma_middle(Doubles a, Doubles x) {  // for large a and x near the mean, by Rice's expansion
    const Doubles one = 1 + 24 * a * (1 + 12 * a);
    const Doubles two = 1440 * (a * a) + 6 * x * (53 - 120 * x) - 65 * x * x / a + a * (107 + 3600 * x);
    return one * two / (1244160 * (a * a) * (a * a));
}
inline Doubles gamma_large(Doubles a, Doubles x) {  // for large a and other x, by the same expansion
    const Doubles log_ratio = logarithm(x / a), root = square_root(8 * a), gap = a - x;
    const Doubles base = -gap - a * log_ratio, third = 1 / (base * square_root(base));
    const Doubles inner = root / gap + (x < a ? -third : third);
    const Doubles term = log_ratio * inner - square_root(2 / a) * (a + x) / (gap * gap);
    return -(1 + 1 / (12 * a) * (1 + 1 / (24 * a))) * x * term / root;
}
inline Doubles gamma_fitted(Doubles a, Doubles x) {  // for all others, by torch's fitted rational function
    static constexpr double fitted[3][8] = {
        {0.16009398, -0.094634809, 0.025146376, -0.0030648343, 1, 0.32668115, 0.10406089, 0.0014179084},
        {0.53487893, 0.1298071, 0.065735949, -0.0015649758, 0.16639465, 0.020070113, -0.0035938915, -0.00058392623},
        {0.040121004, -0.0065914022, -0.0026286047, -0.0013441777, 0.017050642, -0.0021309326, 0.00085092367,
         -1.5247877e-07}};
    const Doubles u = logarithm(x / a), v = logarithm(a);
    Doubles sums[2] = {};
    for (int half = 0; half < 2; ++half)
        for (int i = 3; i >= 0; --i) {
            const int k = 4 * half + i;
            sums[half] = sums[half] * v + (fitted[0][k] + u * (fitted[1][k] + u * fitted[2][k]));
        }
    return exponential(sums[0] / sums[1]);
}
inline Doubles gamma_grad(Doubles a, Doubles x) {
    const Longs small = x < double(0.8f), large = ~small & (a > 8);
    const Longs near = large & (x >= double(0.9f) * a) & (x <= double(1.1f) * a);
    const Longs fitted = ~small & ~large, far = large & ~near;
    Doubles found{};
    if (any(small)) found = small ? gamma_small(a, x) : found;
    if (any(fitted)) found = fitted ? gamma_fitted(a, x) : found;
    if (any(near)) found = near ? gamma_middle(a, x) : found;
    if (any(far)) found = far ? gamma_large(a, x) : found;
    return found;
}
inline V standard_gamma_grad(V concentration, V value) {
    typedef Real Part __attribute__((vector_size(DOUBLES * sizeof(Real))));
    Part a[LANES / DOUBLES], x[LANES / DOUBLES];
    std::memcpy(a, &concentration, sizeof concentration);
    std::memcpy(x, &value, sizeof value);
    for (int i = 0; i < LANES / DOUBLES; ++i)
        x[i] = __builtin_convertvector(
            gamma_grad(__builtin_convertvector(a[i], Doubles), __builtin_convertvector(x[i], Doubles)), Part);
    std::memcpy(&value, x, sizeof value);
    return value;
}

// ---- small matrices, row after row
//
// A sum waits for each of its terms. So TILE by TILE sums are taken at once, and each number that is read serves several
// of them. Where tiles do not fit, the last overlaps the one before: it computes the sums of both again, to the same
// numbers.

constexpr int TILE = 4;
constexpr int tile(int num) { return num < TILE ? num : TILE; }
constexpr int least(int one, int other) { return one < other ? one : other; }

// The product of matrices, whose elements are functions of row and column.
template <int rows, int inner, int columns, class Left, class Right>
inline void product(Left left, Right right, V* to) {
    constexpr int high = tile(rows), wide = tile(columns);
    for (int row = 0; row < rows; row += high)
        for (int column = 0; column < columns; column += wide) {
            const int i = least(row, rows - high), j = least(column, columns - wide);
            V sum[high][wide]{};
            for (int k = 0; k < inner; ++k)
                for (int r = 0; r < high; ++r)
                    for (int c = 0; c < wide; ++c) sum[r][c] += left(i + r, k) * right(k, j + c);
            for (int r = 0; r < high; ++r)
                for (int c = 0; c < wide; ++c) to[(i + r) * columns + j + c] = sum[r][c];
        }
}
// The lower factor of an `n` by `n` matrix.
template <int n>
inline void cholesky(const V* a, V* factor, V* failed) {
    constexpr int high = tile(n);
    M bad{};
    for (int j = 0; j < n; ++j) {
        V pivot = a[j * n + j];
        for (int k = 0; k < j; ++k) pivot -= factor[j * n + k] * factor[j * n + k];
        bad |= ~(pivot > 0);
        const V root = square_root(pivot), inverse = 1 / root;
        for (int i = 0; i < j; ++i) factor[i * n + j] = V{};
        factor[j * n + j] = root;
        for (int row = j + 1; row < n; row += high) {
            V entry[high];
            const auto at = [row](int r) { return least(row + r, n - 1) * n; };
            for (int r = 0; r < high; ++r) entry[r] = a[at(r) + j];
            for (int k = 0; k < j; ++k)
                for (int r = 0; r < high; ++r) entry[r] -= factor[at(r) + k] * factor[j * n + k];
            for (int r = 0; r < high; ++r) factor[at(r) + j] = entry[r] * inverse;
        }
    }
    *failed = bad ? all(1) : V{};
}
// Solves a x = b, or x a = b where `left` is false; x has `rows` by `columns` numbers.
template <int rows, int columns, bool upper, bool left, bool unit>
inline void solve_triangular(const V* a, const V* b, V* x) {
    constexpr int n = left ? rows : columns, others = left ? columns : rows, wide = tile(others);
    constexpr bool falling = upper == left;  // whether the last unknown comes first
    V inverse[n];
    for (int i = 0; i < n; ++i) inverse[i] = unit ? all(1) : 1 / a[i * n + i];
    for (int other = 0; other < others; other += wide) {
        const int first = least(other, others - wide);
        const auto at = [first](int k, int o) { return left ? k * columns + first + o : (first + o) * columns + k; };
        for (int step = 0; step < n; ++step) {
            const int i = falling ? n - 1 - step : step;
            V sum[wide];
            for (int o = 0; o < wide; ++o) sum[o] = b[at(i, o)];
            for (int k = falling ? i + 1 : 0; k < (falling ? n : i); ++k)
                for (int o = 0; o < wide; ++o) sum[o] -= (left ? a[i * n + k] : a[k * n + i]) * x[at(k, o)];
            for (int o = 0; o < wide; ++o) x[at(i, o)] = sum[o] * inverse[i];
        }
    }
}

// ---- memory: the numbers of neighbouring lanes stand next to each other. VALID of them fill a vector; where these are
// fewer than LANES, the rest of the vector repeats the last.

inline V load(const Real* from) {
    V to;
    if (VALID == LANES) {
        std::memcpy(&to, from, sizeof to);
    } else {
        for (int i = 0; i < LANES; ++i) to[i] = from[i < VALID ? i : VALID - 1];
    }
    return to;
}
inline void store(V from, Real* to) { std::memcpy(to, &from, VALID * sizeof(Real)); }
inline M load(const bool* from) {
    M to;
    for (int i = 0; i < LANES; ++i) to[i] = -int(from[i < VALID ? i : VALID - 1]);
    return to;
}
inline void store(M from, bool* to) {
    for (int i = 0; i < VALID; ++i) to[i] = from[i] != 0;
}

// ---- rows of data, which fill all lanes

inline V load_rows(const Real* from) {
    V to;
    std::memcpy(&to, from, sizeof to);
    return to;
}
inline M first_lanes(int64_t num) {
    M found;
    for (int i = 0; i < LANES; ++i) found[i] = -int(i < num);
    return found;
}
inline Real sum_of_lanes(V x) {
    Real sums[LANES];
    std::memcpy(sums, &x, sizeof x);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}
inline Real largest_of_lanes(V x) {
    Real found = x[0];
    for (int i = 1; i < LANES; ++i) found = x[i] > found || x[i] != x[i] ? x[i] : found;
    return found;
}
inline Real smallest_of_lanes(V x) { return -largest_of_lanes(-x); }

}  // namespace
