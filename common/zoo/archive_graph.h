// The forward of a TorchScript module as one graph, and the parts of it that give certain taps.
//
// A module whose forward ends in `return {"layer1": a, "layer2": b, "output": y}` (or `return y`) says which value is
// which tap. So the graph, with all calls inlined, can be cut: behind the last value that is asked for nothing runs,
// and a part can be run from a tap on. The same graph tells, value by value, which parameters a tap depends on, and at
// which taps everything passes through (the residual stream of a network without long skips).
//
// Thread-safe after creation.
#ifndef DISTILL_COMMON_ZOO_ARCHIVE_GRAPH_H_
#define DISTILL_COMMON_ZOO_ARCHIVE_GRAPH_H_

#include <torch/csrc/jit/runtime/interpreter.h>
#include <torch/script.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/status.h"

namespace distill {

class ArchiveGraph {
 public:
  struct Tap {
    std::string path;                     // "" is the output
    std::vector<std::string> parameters;  // that the value depends on; sorted
    bool is_cut = false;                  // the output depends on the image through this value alone
    // Position of the value: an output of a node of the graph's body.
    size_t node = 0, output = 0;
  };

  // Null when the taps cannot be told from the graph (the dictionary is built by statements, say) or when a tapped
  // value is overwritten in place later on: such an archive can only be run as a whole. `why` says which. May throw
  // what torch throws.
  static std::unique_ptr<ArchiveGraph> Create(const torch::jit::Module& module, std::string* why);

  const std::vector<Tap>& taps() const { return taps_; }  // in execution order
  const Tap* Find(const std::string& path) const;

  // What stands against training, in words; "" when nothing does: batch normalization with a fixed mode, attributes
  // that forward assigns.
  std::string AgainstTraining() const;
  // Whether a convolution is among them that LibTorch computes wrongly with channels_last (common/zoo/narrow_conv.h).
  bool HasNarrowStridedConv(const torch::jit::Module& module) const;

  // The values of `taps`, all known. `start` "": x is the image; else x takes the place of this tap, which is a cut.
  // Throws what torch throws. kInvalidArgument: a tap lies before `start`.
  StatusOr<std::vector<torch::Tensor>> Run(const torch::jit::Module& module, const torch::Tensor& x,
                                           const std::string& start, const std::vector<std::string>& taps) const;

 private:
  using Key = std::pair<std::string, std::vector<std::string>>;  // start, taps
  StatusOr<torch::jit::Code> Program(const Key& key) const;

  std::shared_ptr<torch::jit::Graph> graph_;  // inlined; not changed after creation
  std::vector<Tap> taps_;
  mutable absl::Mutex mutex_;
  mutable std::map<Key, torch::jit::Code> programs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ARCHIVE_GRAPH_H_
