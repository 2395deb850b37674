// Part of gloo_compat (see README.md there).
#pragma once

#include <chrono>

namespace gloo {
namespace transport {

class Device;

// Destroyed through its first virtual function, as in gloo.
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};

namespace tcp {

// What Context::createUnboundBuffer makes. `waitRecv` is virtual in gloo; here it is the exported function itself.
class UnboundBuffer : public transport::UnboundBuffer {
 public:
  ~UnboundBuffer() override;
  bool waitRecv(int* rank, std::chrono::milliseconds timeout);
};

}  // namespace tcp
}  // namespace transport
}  // namespace gloo
