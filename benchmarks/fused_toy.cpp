// SVI on the toy with a lognormal guide, by hand: the steps of many independent fits as one loop without memory traffic.
//
// z ~ Exponential(1), x | z ~ Normal(z, 1); log z = u = loc + scale noise, scale = exp(rho). One draw a step:
//
//     ELBO = -z - (x - z)^2 / 2 + u + rho + const,   d/dloc = d/du = z (x - z - 1) + 1,   d/drho = scale noise d/du + 1.
//
// Fits are worked on in groups of LANES, all steps of a group before the next group's, so that a group's state stays in
// the first-level cache; the compiler turns each loop over lanes into vector instructions. Three short loops, since one
// long chain of operations would wait for itself. Every fit has its own generator, xoshiro128+ or 256+ (Blackman and Vigna
// 2021, Scrambled linear pseudorandom number generators); two of its numbers make two normals (Box and Muller 1958), for
// two steps, so the number of steps must be even.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t LANES = 16;
constexpr double BETA1 = 0.9, BETA2 = 0.99;

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// ---- functions: in single precision by Cephes' polynomials, relative error 1e-7, in double by the vector library's

inline float exponential(float x) {
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return bits<float>(bits<int32_t>(p) + (static_cast<int32_t>(n) << 23));
}

inline float logarithm(float x) {
    constexpr int32_t root_half = 0x3f3504f3;  // sqrt(1/2)
    const int32_t shifted = bits<int32_t>(x) - root_half;
    const float exponent = static_cast<float>(shifted >> 23);
    const float r = bits<float>((shifted & 0x7fffff) + root_half) - 1.0f, square = r * r;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    return exponent * 0.69314718f + (r - 0.5f * square + square * r * p);
}

inline double exponential(double x) { return std::exp(x); }

template <class Real>
struct Pair {
    Real first, second;
};

// Two normals of two words: the first word's upper 24 bits are a uniform number in (0, 1], the second's are an angle, a
// bit for the half turn, one for the quarter, and 30 within it.
inline Pair<float> normals(uint32_t a, uint32_t b) {
    const float uniform = static_cast<float>(static_cast<int32_t>(a >> 8) + 1) * 0x1p-24f;
    const float radius = std::sqrt(-2.0f * logarithm(uniform));
    const float angle = static_cast<float>(static_cast<int32_t>(b << 2)) * static_cast<float>(M_PI / 2 * 0x1p-32);
    const float s = angle * angle;
    const float sine = angle + angle * s * (-1.6666654611e-1f + s * (8.3321608736e-3f - 1.9515295891e-4f * s));
    const float cosine = 1.0f - 0.5f * s + s * s * (4.1666645683e-2f + s * (2.4433157118e-5f * s - 1.3887316255e-3f));
    const bool quarter = b & 0x40000000u;
    const uint32_t half = b & 0x80000000u;
    const float one = quarter ? -sine : cosine, other = quarter ? cosine : sine;
    return {radius * bits<float>(bits<uint32_t>(one) ^ half), radius * bits<float>(bits<uint32_t>(other) ^ half)};
}

// Between 1 and 2, by its 52 bits: there is no vector instruction from 64-bit integers.
inline double in_one_to_two(uint64_t word) { return bits<double>((word >> 12) | 0x3ff0000000000000u); }

inline Pair<double> normals(uint64_t a, uint64_t b) {
    const double radius = std::sqrt(-2.0 * std::log(2.0 - in_one_to_two(a)));
    const double angle = (in_one_to_two(b) - 1.5) * (2 * M_PI);
    return {radius * std::cos(angle), radius * std::cos(angle - M_PI / 2)};  // sine and cosine together are not vectorised
}

// ---- the generators

template <class Word>
struct Shifts;
template <>
struct Shifts<uint32_t> {
    static constexpr int left = 9, rotate = 11;
};
template <>
struct Shifts<uint64_t> {
    static constexpr int left = 17, rotate = 45;
};

template <class Word>
inline Word next(Word& s0, Word& s1, Word& s2, Word& s3) {
    constexpr int rotate = Shifts<Word>::rotate;
    const Word result = s0 + s3, t = s1 << Shifts<Word>::left;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= t;
    s3 = (s3 << rotate) | (s3 >> (8 * sizeof(Word) - rotate));
    return result;
}

// ---- a step

template <class Real>
struct Rate {
    Real size, epsilon;  // Adam's step with its corrections for the start; what is added to the second moment
};

template <class Real>
inline void adam(Real& parameter, Real& first, Real& second, Real gradient, Rate<Real> rate) {
    first = Real(BETA1) * first + Real(1 - BETA1) * gradient;
    second = Real(BETA2) * second + Real(1 - BETA2) * gradient * gradient;
    parameter += rate.size * first / std::sqrt(second + rate.epsilon);
}

template <class Real>
struct alignas(64) Group {
    Real loc[LANES], rho[LANES], first_loc[LANES], first_rho[LANES], second_loc[LANES], second_rho[LANES];
};

template <class Word>
struct alignas(64) Generators {
    Word s0[LANES], s1[LANES], s2[LANES], s3[LANES];
};

template <class Real>
inline void step(Group<Real>& g, const Real* noise, Real x, Rate<Real> rate) {
    for (int64_t i = 0; i < LANES; ++i) {
        const Real spread = exponential(g.rho[i]) * noise[i];
        const Real z = exponential(g.loc[i] + spread);
        const Real slope = z * (x - z - 1) + 1;
        adam(g.loc[i], g.first_loc[i], g.second_loc[i], slope, rate);
        adam(g.rho[i], g.first_rho[i], g.second_rho[i], spread * slope + 1, rate);
    }
}

template <class Real, class Word>
void advance(Group<Real>* groups, Generators<Word>* generators, const Rate<Real>* rates, int64_t num_groups,
             int64_t num_steps, Real x) {
    for (int64_t n = 0; n < num_groups; ++n) {
        Group<Real> g;
        Generators<Word> s;
        std::memcpy(&g, groups + n, sizeof g);  // the caller's memory need not be aligned
        std::memcpy(&s, generators + n, sizeof s);
        for (int64_t t = 0; t < num_steps; t += 2) {
            alignas(64) Real first[LANES], second[LANES];
            for (int64_t i = 0; i < LANES; ++i) {
                const Word a = next(s.s0[i], s.s1[i], s.s2[i], s.s3[i]);
                const Word b = next(s.s0[i], s.s1[i], s.s2[i], s.s3[i]);
                const Pair<Real> noise = normals(a, b);
                first[i] = noise.first;
                second[i] = noise.second;
            }
            step(g, first, x, rates[t]);
            step(g, second, x, rates[t + 1]);
        }
        std::memcpy(groups + n, &g, sizeof g);
        std::memcpy(generators + n, &s, sizeof s);
    }
}

}  // namespace

// Groups of `LANES` fits, `(num_groups, 6, LANES)`, through the steps of `rates` `(num_steps, 2)`; generators
// `(num_groups, 4, LANES)`.

extern "C" int64_t lanes() { return LANES; }

extern "C" void advance_float32(void* groups, void* generators, const void* rates, int64_t num_groups, int64_t num_steps,
                                double x) {
    advance(static_cast<Group<float>*>(groups), static_cast<Generators<uint32_t>*>(generators),
            static_cast<const Rate<float>*>(rates), num_groups, num_steps, static_cast<float>(x));
}

extern "C" void advance_float64(void* groups, void* generators, const void* rates, int64_t num_groups, int64_t num_steps,
                                double x) {
    advance(static_cast<Group<double>*>(groups), static_cast<Generators<uint64_t>*>(generators),
            static_cast<const Rate<double>*>(rates), num_groups, num_steps, x);
}
