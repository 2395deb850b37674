// Damages bytes as disks, transfers and attackers do, the same way in every run. For tests of parsers: whatever comes
// of it is read or refused, and never ends the process (the preset asan sees what would only be lucky elsewhere).
#ifndef DISTILL_TESTS_HARNESS_MUTATION_H_
#define DISTILL_TESTS_HARNESS_MUTATION_H_

#include <cstdint>
#include <random>
#include <string>

namespace distill::testing {

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  // `whole` with one to four changes, each at a random place: a bit, a byte (with a liking for the extremes), a run cut
  // out, doubled or filled, or the end cut off.
  std::string Mutate(std::string whole) {
    for (uint32_t changes = 1 + Below(4); changes > 0 && !whole.empty(); --changes) {
      const size_t at = Below(whole.size());
      const size_t length = 1 + Below(whole.size() - at < 64 ? whole.size() - at : 64);
      switch (Below(7)) {
        case 0:
          whole[at] = static_cast<char>(whole[at] ^ (1 << Below(8)));
          break;
        case 1:
          whole[at] = static_cast<char>(Below(256));
          break;
        case 2:
          whole[at] = "\x00\x7f\x80\xff"[Below(4)];
          break;
        case 3:
          whole.erase(at, length);
          break;
        case 4:
          whole.insert(at, whole.substr(at, length));
          break;
        case 5:
          whole.replace(at, length, length, "\x00\xff 9"[Below(4)]);
          break;
        case 6:
          whole.resize(at);
          break;
      }
    }
    return whole;
  }

  // In [0, n). REQUIRES: n >= 1.
  uint32_t Below(size_t n) { return static_cast<uint32_t>(random_() % n); }

 private:
  std::mt19937 random_;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_HARNESS_MUTATION_H_
