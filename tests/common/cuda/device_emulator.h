// common/cuda/device_cuda.h on the host: runs kernels' code thread by thread, so that tests can check indices, barriers
// and arithmetic where there is no GPU. It knows blocks, warps, clusters and their barriers; it does not find races
// between threads that no barrier separates, for a thread runs until its next barrier.
#ifndef DISTILL_TESTS_COMMON_CUDA_DEVICE_EMULATOR_H_
#define DISTILL_TESTS_COMMON_CUDA_DEVICE_EMULATOR_H_

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define DISTILL_DEVICE inline

namespace distill::device {

class Emulator {
 public:
  struct Barrier {
    int expected = 0, arrived = 0;
    int64_t generation = 0;
  };

  // Runs `blocks` blocks of `threads` threads, `team` consecutive ones at a time; each block has `shared_bytes` of
  // shared memory, filled with 0xff (NaN).
  static void Run(int64_t blocks, int threads, int team, int64_t shared_bytes, const std::function<void(char*)>& body) {
    for (int64_t first = 0; first < blocks; first += team) {
      Emulator emulator(blocks, first, threads, team, shared_bytes, body);
      current() = &emulator;
      emulator.Schedule();
      current() = nullptr;
    }
  }

  static Emulator*& current() {
    static Emulator* emulator = nullptr;
    return emulator;
  }

  int thread() const { return running_ % threads_; }
  int threads() const { return threads_; }
  int rank() const { return running_ / threads_; }
  int team() const { return team_; }
  int64_t block() const { return first_block_ + rank(); }
  int64_t blocks() const { return blocks_; }
  char* shared(int rank) { return shared_[rank].data(); }

  Barrier* block_barrier() { return &block_barriers_[rank()]; }
  Barrier* warp_barrier() { return &warp_barriers_[running_ / 32]; }
  Barrier* team_barrier() { return &team_barrier_; }
  char* warp_values() { return warp_values_[running_ / 32].data(); }

  void Wait(Barrier* barrier) {
    const int64_t generation = barrier->generation;
    if (++barrier->arrived == barrier->expected) {
      barrier->arrived = 0;
      ++barrier->generation;
      progress_ = true;
      return;
    }
    while (barrier->generation == generation) Yield();
  }

 private:
  static constexpr size_t kStack = 64 << 10;
  static constexpr size_t kCanary = 64;

  Emulator(int64_t blocks, int64_t first_block, int threads, int team, int64_t shared_bytes,
           const std::function<void(char*)>& body)
      : blocks_(blocks), first_block_(first_block), threads_(threads), team_(team), body_(body) {
    const int count = threads * team;
    shared_.assign(team, std::vector<char>(shared_bytes + kCanary, '\xff'));
    block_barriers_.assign(team, {threads});
    warp_barriers_.assign(count / 32, {32});
    warp_values_.assign(count / 32, std::vector<char>(32 * sizeof(double)));
    team_barrier_.expected = count;
    contexts_.resize(count);
    finished_.assign(count, false);
    stacks_.reset(new char[count * kStack]);
    for (int i = 0; i < count; ++i) {
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_.get() + i * kStack;
      contexts_[i].uc_stack.ss_size = kStack;
      contexts_[i].uc_link = &scheduler_;
      makecontext(&contexts_[i], &Emulator::Enter, 0);
    }
  }

  static void Enter() {
    Emulator* const self = current();
    self->body_(self->shared(self->rank()));
    self->finished_[self->running_] = true;
    self->progress_ = true;
  }

  void Yield() { swapcontext(&contexts_[running_], &scheduler_); }

  void Schedule() {
    for (bool left = true; left;) {
      left = progress_ = false;
      for (running_ = 0; running_ < static_cast<int>(contexts_.size()); ++running_) {
        if (finished_[running_]) continue;
        left = true;
        swapcontext(&scheduler_, &contexts_[running_]);
      }
      if (left && !progress_) Die("some threads wait at a barrier that others do not reach");
    }
    for (const std::vector<char>& shared : shared_) {
      for (size_t i = shared.size() - kCanary; i < shared.size(); ++i) {
        if (shared[i] != '\xff') Die("something was written beyond the shared memory");
      }
    }
  }

  [[noreturn]] static void Die(const char* what) {
    std::fprintf(stderr, "device emulator: %s\n", what);
    std::abort();
  }

  const int64_t blocks_, first_block_;
  const int threads_, team_;
  const std::function<void(char*)>& body_;
  std::vector<std::vector<char>> shared_;
  std::vector<Barrier> block_barriers_, warp_barriers_;
  std::vector<std::vector<char>> warp_values_;
  Barrier team_barrier_;
  std::vector<ucontext_t> contexts_;
  std::vector<bool> finished_;
  std::unique_ptr<char[]> stacks_;
  ucontext_t scheduler_;
  int running_ = 0;
  bool progress_ = false;
};

DISTILL_DEVICE int Thread() { return Emulator::current()->thread(); }
DISTILL_DEVICE int Threads() { return Emulator::current()->threads(); }
DISTILL_DEVICE int64_t BlockX() { return Emulator::current()->block(); }
DISTILL_DEVICE int64_t BlocksX() { return Emulator::current()->blocks(); }
DISTILL_DEVICE void Sync() { Emulator::current()->Wait(Emulator::current()->block_barrier()); }
template <typename T>
DISTILL_DEVICE T Exchange(T value, int mask) {
  Emulator* const emulator = Emulator::current();
  T* const values = reinterpret_cast<T*>(emulator->warp_values());
  values[emulator->thread() % 32] = value;
  emulator->Wait(emulator->warp_barrier());
  const T other = values[emulator->thread() % 32 ^ mask];
  emulator->Wait(emulator->warp_barrier());
  return other;
}

struct Team {
  static int Rank() { return Emulator::current()->rank(); }
  static int Size() { return Emulator::current()->team(); }
  static void Sync() { Emulator::current()->Wait(Emulator::current()->team_barrier()); }
  template <typename T>
  static T* At(T* shared, int rank) {
    Emulator* const emulator = Emulator::current();
    return reinterpret_cast<T*>(emulator->shared(rank) +
                                (reinterpret_cast<char*>(shared) - emulator->shared(emulator->rank())));
  }
};

}  // namespace distill::device

#endif  // DISTILL_TESTS_COMMON_CUDA_DEVICE_EMULATOR_H_
