// The random numbers of data order and transforms: SplitMix64 (Steele et al., OOPSLA 2014), keyed by a hashed tuple.
//
// Output i of stream k is Mix(k + (i + 1) * 0x9E3779B97F4A7C15); the key is a chain of the same mix over (seed,
// purpose, a, b). Every value is a pure function of these numbers, equal on every platform and in every version: golden
// values are in the tests. (std::shuffle and the std distributions leave their results to the library.)
#ifndef DISTILL_STUDENT_WORKER_DATA_COUNTER_RNG_H_
#define DISTILL_STUDENT_WORKER_DATA_COUNTER_RNG_H_

#include <cstdint>

namespace distill {

// Purposes keep streams with equal (seed, a, b) apart. Values are part of the format: never renumber.
enum class RngPurpose : uint64_t { kEpochOrder = 1, kTransform = 2, kSubset = 3 };

// Value type, thread-compatible.
class CounterRng {
 public:
  CounterRng(uint64_t seed, RngPurpose purpose, uint64_t a = 0, uint64_t b = 0)
      : state_(Mix(Mix(Mix(Mix(seed + kGamma) + static_cast<uint64_t>(purpose) * kGamma) + a) + b * kGamma)) {}

  // Uniform over all 64-bit values.
  uint64_t Next() { return Mix(state_ += kGamma); }
  // Uniform in [0, bound), without bias (Lemire's multiply and reject). REQUIRES: bound > 0.
  uint64_t Below(uint64_t bound) {
    unsigned __int128 product = static_cast<unsigned __int128>(Next()) * bound;
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t threshold = -bound % bound;  // 2^64 mod bound: low words below it would be over-represented
      while (static_cast<uint64_t>(product) < threshold) product = static_cast<unsigned __int128>(Next()) * bound;
    }
    return static_cast<uint64_t>(product >> 64);
  }

  // Uniform in [0, 1): the multiples of 2^-53.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

  // The finalizer of SplitMix64 (Stafford's variant 13).
  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  static constexpr uint64_t kGamma = 0x9E3779B97F4A7C15ull;

 private:
  uint64_t state_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_COUNTER_RNG_H_
