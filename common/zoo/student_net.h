// What a student is: a network that is run up to the taps a stage needs, some of whose modules train and others not,
// whose state is saved under its names, and which can be written as an archive.
//
// Two implementations: ZooNet (common/zoo/zoo_net.h), built from an architecture of the zoo, and TorchScriptNet
// (common/zoo/torchscript_net.h), a program that somebody exported. Paths of modules are those of
// architecture().ModulePaths(). Thread-compatible; concurrent Forward() is safe when all modules are in eval mode.
#ifndef DISTILL_COMMON_ZOO_STUDENT_NET_H_
#define DISTILL_COMMON_ZOO_STUDENT_NET_H_

#include <torch/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

class NormRanks;

class StudentNet {
 public:
  struct StateTensor {
    std::string name;
    torch::Tensor tensor;  // the net's own, not a copy
    bool is_buffer = false;
  };

  virtual ~StudentNet() = default;

  virtual const Architecture& architecture() const = 0;

  // x: floating point (N, C, H, W), of the weights' dtype and device, normalised, any memory format; C, H, W as in the
  // spec. Returns one tensor per tap, in the order asked for (a tap may be asked for twice); "" is the network's output
  // (N, K), of a dense network (N, K, H, W). Runs only what the taps need, and later modules' statistics stay as they
  // are. Tapped values are never overwritten by later layers. kInvalidArgument: unknown tap, no tap, wrong input shape
  // or dtype. kResourceExhausted: out of memory. kInternal: torch failed.
  virtual StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x,
                                                       const std::vector<std::string>& taps) = 0;

  // The same, from the tap `start` on, for which `value` (its shape, for N images) is taken; what comes before it does
  // not run, and taps there cannot be asked for. kInvalidArgument also: the net cannot start there
  // (Architecture::CanStartAfter), or value has another shape.
  virtual StatusOr<std::vector<torch::Tensor>> ForwardAfter(const std::string& start, const torch::Tensor& value,
                                                            const std::vector<std::string>& taps) = 0;

  // The output [N, K, H, W] for pictures of a height and width of their own, of 8 pixels at least: for dense networks
  // of the zoo. kInvalidArgument also: any other network.
  virtual StatusOr<torch::Tensor> ForwardAtAnySize(const torch::Tensor& x) = 0;

  // Parameters, then buffers, each in the order of architecture().StateDict() and under its names.
  virtual std::vector<StateTensor> State() const = 0;

  // Train or eval mode of all modules at or below `path`; "" is the whole net.
  virtual void SetTraining(std::string_view path, bool training) = 0;
  // The mode of each module, in an order of the net's own, and back.
  virtual std::vector<bool> Modes() const = 0;
  virtual void SetModes(const std::vector<bool>& modes) = 0;

  // From now on batch norms in train mode take the images of all `ranks` together (common/zoo/batch_norm.h); null: this
  // net's own alone, as at first. Not owned: outlives its use. kInvalidArgument: an archive, whose batch norms are
  // parts of its own program.
  virtual Status SetNormRanks(NormRanks* ranks) = 0;

  // The state before the first step, from the seed alone. An archive has what it was saved with, whatever the seed.
  virtual void InitWeights(uint64_t seed) = 0;

  virtual void MoveTo(const torch::Device& device) = 0;

  // Writes a TorchScript archive of the net in eval mode, whose state_dict has the net's names, atomically. Errors as
  // WriteFileAtomically; kInternal: torch failed.
  virtual Status Export(const std::string& path) const = 0;
};

// The tensors of State().
std::vector<torch::Tensor> Parameters(const StudentNet& net);
std::vector<torch::Tensor> Buffers(const StudentNet& net);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_STUDENT_NET_H_
