// What the loss tests share: building a loss from a plan, and checking gradients by central differences in float64.
#ifndef DISTILL_TESTS_STUDENT_WORKER_LOSSES_LOSS_CHECKS_H_
#define DISTILL_TESTS_STUDENT_WORKER_LOSSES_LOSS_CHECKS_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>
#include <string>

#include "student_worker/losses/loss.h"

namespace distill {

inline std::unique_ptr<Loss> Build(const std::string& type, Knobs knobs = {}) {
  LossPlan plan;
  plan.name = type;
  plan.type = type;
  plan.knobs = std::move(knobs);
  auto loss = MakeLoss(plan);
  if (!loss.ok()) throw std::runtime_error(loss.status().ToString());
  return std::move(*loss);
}

struct LossAndGradient {
  double loss;
  torch::Tensor gradient;  // as the student
};

inline LossAndGradient Differentiate(const Loss& loss, LossInputs inputs) {
  inputs.student = inputs.student.detach().clone().requires_grad_(true);
  auto value = loss.Compute(inputs);
  if (!value.ok()) throw std::runtime_error(value.status().ToString());
  value->backward();
  return {value->item<double>(), inputs.student.grad()};
}

inline double Value(const Loss& loss, const LossInputs& inputs) {
  auto value = loss.Compute(inputs);
  if (!value.ok()) throw std::runtime_error(value.status().ToString());
  return value->item<double>();
}

// Every element of the gradient against (L(s + h) - L(s - h)) / 2h. REQUIRES: float64 inputs.
inline void ExpectGradientMatchesDifferences(const Loss& loss, const LossInputs& inputs, double tolerance = 1e-7) {
  const torch::Tensor gradient = Differentiate(loss, inputs).gradient.contiguous().flatten();
  const double h = 1e-5;
  for (int64_t i = 0; i < inputs.student.numel(); ++i) {
    LossInputs up = inputs, down = inputs;
    up.student = inputs.student.contiguous().clone();
    down.student = inputs.student.contiguous().clone();
    up.student.flatten()[i] += h;
    down.student.flatten()[i] -= h;
    const double numeric = (Value(loss, up) - Value(loss, down)) / (2 * h);
    const double analytic = gradient[i].item<double>();
    ASSERT_NEAR(analytic, numeric, tolerance * std::max(1.0, std::abs(numeric))) << "element " << i;
  }
}

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_LOSSES_LOSS_CHECKS_H_
