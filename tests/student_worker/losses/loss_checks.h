// What the loss tests share: building a loss from a plan, and checking gradients by central differences in float64.
#ifndef DISTILL_TESTS_STUDENT_WORKER_LOSSES_LOSS_CHECKS_H_
#define DISTILL_TESTS_STUDENT_WORKER_LOSSES_LOSS_CHECKS_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "student_worker/losses/loss.h"

namespace distill {

// Channels are needed by losses that bring layers along.
inline std::unique_ptr<Loss> Build(const std::string& type, Knobs knobs = {}, uint32_t student_channels = 0,
                                   uint32_t teacher_channels = 0, uint64_t seed = 0) {
  LossPlan plan;
  plan.name = type;
  plan.type = type;
  plan.knobs = std::move(knobs);
  plan.student_channels = student_channels;
  plan.teacher_channels = teacher_channels;
  auto loss = MakeLoss(plan, seed);
  if (!loss.ok()) throw std::runtime_error(loss.status().ToString());
  return std::move(*loss);
}

// Layers become float64, so that a small step on a parameter is not rounded away.
inline std::unique_ptr<Loss> InDouble(std::unique_ptr<Loss> loss) {
  if (loss->module() != nullptr) loss->module()->to(torch::kFloat64);
  return loss;
}

// scale * sin(0.37 i^2 + phase): irregular, and the same in Python.
inline torch::Tensor Wave(const std::vector<int64_t>& shape, double phase, double scale = 1) {
  const torch::Tensor i = torch::arange(c10::multiply_integers(shape), torch::kFloat64);
  return (torch::sin(i * i * 0.37 + phase) * scale).reshape(shape);
}

// Values for the parameter `name` of the loss's layers, in their shape.
inline void SetParameter(const Loss& loss, const std::string& name, const torch::Tensor& values) {
  torch::NoGradGuard no_grad;
  torch::Tensor parameter = loss.module()->named_parameters()[name];
  parameter.copy_(values.reshape(parameter.sizes()));
}

struct LossAndGradient {
  double loss;
  torch::Tensor gradient;  // as the student
};

// The parameters' gradients are those of this call, too.
inline LossAndGradient Differentiate(const Loss& loss, LossInputs inputs) {
  inputs.student = inputs.student.detach().clone().requires_grad_(true);
  if (loss.module() != nullptr) loss.module()->zero_grad();
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

// The same for the loss's own parameters, about twenty elements of each. REQUIRES: InDouble, float64 inputs.
inline void ExpectParameterGradientsMatchDifferences(const Loss& loss, const LossInputs& inputs,
                                                     double tolerance = 1e-7) {
  ASSERT_NE(loss.module(), nullptr);
  Differentiate(loss, inputs);
  const double h = 1e-5;
  for (const auto& item : loss.module()->named_parameters()) {
    ASSERT_EQ(item.value().scalar_type(), torch::kFloat64) << item.key();
    const torch::Tensor gradient = item.value().grad().clone().flatten();
    torch::NoGradGuard no_grad;
    torch::Tensor values = item.value().view({-1});
    const int64_t stride = std::max<int64_t>(1, values.numel() / 20);
    for (int64_t i = 0; i < values.numel(); i += stride) {
      const double before = values[i].item<double>();
      values[i] = before + h;
      const double up = Value(loss, inputs);
      values[i] = before - h;
      const double down = Value(loss, inputs);
      values[i] = before;
      const double numeric = (up - down) / (2 * h);
      ASSERT_NEAR(gradient[i].item<double>(), numeric, tolerance * std::max(1.0, std::abs(numeric)))
          << item.key() << " element " << i;
    }
  }
}

// The refusal's text; fails when there is none.
inline std::string Refusal(const Loss& loss, const LossInputs& inputs) {
  const auto value = loss.Compute(inputs);
  EXPECT_EQ(value.status().code(), StatusCode::kInvalidArgument);
  return value.status().ToString();
}

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_LOSSES_LOSS_CHECKS_H_
