// A network from a TorchScript archive, as a frozen teacher or as a student.
//
// forward(x) returns a tensor (the output) or a Dict[str, Tensor] of taps, in which the key "output", when present, is
// the network's output; where there is none, the key "out", which is what torchvision's segmentation networks call it,
// is a tap of that name and the output too. The output is [N, K], or [N, K, H, W] of a network that answers per pixel.
// scripts/export_model.py writes such archives; by hand it is torch.jit.script of a module whose forward ends in
// `return {"layer1": a, "output": y}`.
//
// A TorchScript archive is a program: only load archives from a folder that the operator owns. torch does not harden
// the loader against hostile files.
//
// As a student it follows StudentNet: modules keep their modes, taps that nobody asks for do not run, and the state has
// the names that the archive has.
#ifndef DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_
#define DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/zoo/student_net.h"

namespace distill {

struct TorchScriptOptions {
  std::string device = "cpu";  // "cuda:0"
  // To be trained: more is asked of it (kFailedPrecondition names what is missing) and gradients flow. False: frozen,
  // always under no-grad.
  bool training = false;
  std::vector<std::string> stages = {};  // taps that end a stage
};

class TorchScriptNet : public StudentNet {
 public:
  // Loads the archive in eval mode and probes it with pictures of spec's channels, size, mean and std to learn its taps
  // (common/zoo/archive_probe.h). kNotFound: no such file. kDataLoss: damaged, or torch cannot read it.
  // kFailedPrecondition: it is another kind of file, a program whose answers are not the images', `stages` names no tap
  // of it, or it cannot be trained: an output of another kind; taps that the graph does not show; parameters that are
  // not float32, or one tensor under two names; a batch normalization of a fixed mode; a forward and backward in train
  // mode that fails.
  static StatusOr<std::unique_ptr<TorchScriptNet>> Load(const std::string& path, const ModelSpec& spec,
                                                        const TorchScriptOptions& options = {});

  // The output (path ""), then the taps in execution order. Kind is kOpaque. Shapes as measured.
  virtual const std::vector<TapInfo>& taps() const = 0;
  virtual uint64_t ParameterCount() const = 0;
  // Whether only what the asked-for taps need is run; else always the whole archive.
  virtual bool runs_prefixes() const = 0;

  // Every value has x's number of images as first axis and the shape of taps() behind it; kInternal, with both shapes,
  // when the archive returns something else this time.
  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x,
                                               const std::vector<std::string>& taps) override = 0;
  // REQUIRES: training. As StudentNet says; a teacher's archive has no architecture.
  const Architecture& architecture() const override = 0;
};

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_
