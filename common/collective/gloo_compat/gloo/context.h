// Part of gloo_compat (see README.md there). Never constructed here: only functions that libtorch_cpu exports are
// declared.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "gloo/transport/device.h"

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  std::unique_ptr<transport::UnboundBuffer> createUnboundBuffer(void* data, std::size_t size);
};

}  // namespace gloo
