// Freezing: which of the student's parameters train in a stage.
//
// Frozen means more than "no gradient": frozen modules run in eval mode, so that batch-norm statistics (buffers) stay
// where they are, and their parameters are in no optimizer and have no gradient tensor, so that neither weight decay
// nor momentum moves them.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_TRAINABLE_SET_H_
#define DISTILL_STUDENT_WORKER_TRAIN_TRAINABLE_SET_H_

#include <string>
#include <vector>

#include "common/status.h"
#include "common/zoo/student_net.h"
#include "student_worker/train/tensor_io.h"

namespace distill {

// Freezes the whole net, then unfreezes the modules at `trainable` (dotted paths) and puts them in train mode. Returns
// their parameters in the net's order. With `frozen_bn_trains` (an ablation) the frozen modules are in train mode too,
// so that their batch norms use and update batch statistics. All gradients are undefined afterwards. kInvalidArgument:
// no module at a path, with the nearest one; the net is frozen then.
StatusOr<std::vector<NamedTensor>> ApplyTrainable(StudentNet* net, const std::vector<std::string>& trainable,
                                                  bool frozen_bn_trains = false);

// Puts the net in eval mode and back into the modes it had, module by module.
class EvalModeGuard {
 public:
  explicit EvalModeGuard(StudentNet* net);
  ~EvalModeGuard();
  EvalModeGuard(const EvalModeGuard&) = delete;
  EvalModeGuard& operator=(const EvalModeGuard&) = delete;

 private:
  StudentNet* const net_;  // not owned; outlives the guard
  const std::vector<bool> modes_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_TRAINABLE_SET_H_
