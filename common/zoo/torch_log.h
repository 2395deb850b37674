// Torch's warnings as lines of our log.
#ifndef DISTILL_COMMON_ZOO_TORCH_LOG_H_
#define DISTILL_COMMON_ZOO_TORCH_LOG_H_

namespace distill {

// From now on torch's warnings (hints to developers, as a rule) go to common/log.h at level debug instead of to
// standard error, as far as they arise on the calling thread. Idempotent.
void SendTorchWarningsToLog();

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_TORCH_LOG_H_
