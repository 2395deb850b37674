// The optimizers against their formulas, in plain loops in double.
#include "student_worker/train/stage_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <map>

namespace distill {
namespace {

using testing::HasSubstr;

// A matrix, a bias that starts at 0 and a norm's weight, in float64, with gradients that change from step to step.
struct Parameters {
  Parameters() {
    const auto options = torch::TensorOptions(torch::kFloat64);
    matrix = torch::linspace(-1, 1.5, 6, options).view({2, 3}).requires_grad_();
    bias = torch::zeros({2}, options).requires_grad_();
    norm = torch::ones({3}, options).requires_grad_();
  }
  std::vector<NamedTensor> All() const { return {{"w", matrix}, {"b", bias}, {"n", norm}}; }
  static double Gradient(int step, int64_t i) { return std::sin(1.7 * step + 0.9 * static_cast<double>(i)); }
  void SetGradients(int step) {
    for (const NamedTensor& parameter : All()) {
      torch::Tensor gradient = torch::empty_like(parameter.tensor);
      for (int64_t i = 0; i < gradient.numel(); ++i) gradient.view(-1)[i] = Gradient(step, i);
      torch::Tensor tensor = parameter.tensor;
      tensor.mutable_grad() = gradient;
    }
  }
  torch::Tensor matrix, bias, norm;
};

std::vector<double> Values(const torch::Tensor& tensor) {
  const torch::Tensor flat = tensor.detach().contiguous().view(-1);
  return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

std::unique_ptr<StageOptimizer> Make(const OptimizerPlan& plan, const Parameters& parameters) {
  auto made = StageOptimizer::Create(
      plan, {{.parameters = parameters.All(), .lr_mult = 1, .constant_lr = false, .weight_decay = {}}});
  if (!made.ok()) throw std::runtime_error(made.status().ToString());
  return *std::move(made);
}

// One parameter through `steps` steps, as the papers (sgd: torch's documentation) write it.
std::vector<double> Reference(const OptimizerPlan& plan, std::vector<double> x, bool excluded, int steps,
                              const std::vector<double>& factors) {
  const double decay = excluded ? 0 : plan.weight_decay;
  std::vector<double> m(x.size()), v(x.size()), r(x.size());
  for (int t = 1; t <= steps; ++t) {
    const double lr = plan.lr * factors[t - 1];
    for (size_t i = 0; i < x.size(); ++i) {
      double g = Parameters::Gradient(t, static_cast<int64_t>(i));
      if (plan.type == "sgd") {
        g += decay * x[i];
        m[i] = t == 1 ? g : plan.momentum * m[i] + g;
        r[i] = plan.nesterov ? g + plan.momentum * m[i] : m[i];
        continue;
      }
      if (plan.type == "adam") g += decay * x[i];
      m[i] = plan.beta1 * m[i] + (1 - plan.beta1) * g;
      v[i] = plan.beta2 * v[i] + (1 - plan.beta2) * g * g;
      r[i] = m[i] / (1 - std::pow(plan.beta1, t)) / (std::sqrt(v[i] / (1 - std::pow(plan.beta2, t))) + plan.eps);
      if (plan.type != "adam") r[i] += decay * x[i];
    }
    double ratio = 1;
    if (plan.type == "lamb" && !excluded) {
      double x2 = 0, r2 = 0;
      for (size_t i = 0; i < x.size(); ++i) x2 += x[i] * x[i], r2 += r[i] * r[i];
      if (x2 > 0 && r2 > 0) ratio = std::sqrt(x2) / std::sqrt(r2);
    }
    for (size_t i = 0; i < x.size(); ++i) x[i] -= lr * ratio * r[i];
  }
  return x;
}

struct Case {
  const char* name;
  OptimizerPlan plan;
};
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

OptimizerPlan Plan(const std::string& type, double lr, double decay, bool decay_all = true) {
  OptimizerPlan plan;
  plan.type = type;
  plan.lr = lr;
  plan.weight_decay = decay;
  plan.decay_norms_and_biases = decay_all;
  return plan;
}

OptimizerPlan Nesterov() {
  OptimizerPlan plan = Plan("sgd", 0.1, 0.01);
  plan.nesterov = true;
  return plan;
}

OptimizerPlan Betas() {
  OptimizerPlan plan = Plan("adamw", 0.02, 0.3);
  plan.beta1 = 0.8;
  plan.beta2 = 0.95;
  plan.eps = 1e-3;
  return plan;
}

class FormulaTest : public testing::TestWithParam<Case> {};

TEST_P(FormulaTest, FiveStepsAreThoseOfTheFormula) {
  const OptimizerPlan& plan = GetParam().plan;
  Parameters parameters;
  std::map<std::string, std::vector<double>> expected;
  const std::vector<double> factors = {1, 0.5, 0.25, 2, 1};
  for (const NamedTensor& parameter : parameters.All()) {
    const bool excluded = !plan.decay_norms_and_biases && parameter.tensor.dim() <= 1;
    expected[parameter.name] = Reference(plan, Values(parameter.tensor), excluded, 5, factors);
  }
  const auto optimizer = Make(plan, parameters);
  for (int t = 1; t <= 5; ++t) {
    parameters.SetGradients(t);
    optimizer->SetScheduleFactor(factors[t - 1]);
    optimizer->Step();
  }
  for (const NamedTensor& parameter : parameters.All()) {
    const std::vector<double> got = Values(parameter.tensor);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i], expected[parameter.name][i], 1e-12) << parameter.name << " [" << i << "]";
    }
  }
  EXPECT_EQ(optimizer->StepCount(), plan.type == "sgd" ? 0 : 5);
}

INSTANTIATE_TEST_SUITE_P(Types, FormulaTest,
                         testing::Values(Case{"sgd", Plan("sgd", 0.1, 0.01)}, Case{"nesterov", Nesterov()},
                                         Case{"sgd_without_decay_of_biases", Plan("sgd", 0.1, 0.1, false)},
                                         Case{"adam", Plan("adam", 0.01, 0.1)}, Case{"adamw", Plan("adamw", 0.01, 0.1)},
                                         Case{"adamw_with_betas", Betas()},
                                         Case{"adamw_without_decay_of_biases", Plan("adamw", 0.01, 0.1, false)},
                                         Case{"lamb", Plan("lamb", 0.05, 0.1)},
                                         Case{"lamb_without_decay", Plan("lamb", 0.05, 0)},
                                         Case{"lamb_without_decay_of_biases", Plan("lamb", 0.05, 0.1, false)}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(StageOptimizerTest, GroupsThatSleepDoNotMoveUnderAnyType) {
  for (const char* type : {"sgd", "adam", "adamw", "lamb"}) {
    Parameters parameters;
    const auto before = Values(parameters.matrix);
    const auto optimizer = Make(Plan(type, 0.1, 0.1), parameters);
    parameters.SetGradients(1);
    optimizer->SetScheduleFactor(1, {0});
    optimizer->Step();
    EXPECT_EQ(Values(parameters.matrix), before) << type;
  }
}

TEST(StageOptimizerTest, RefusesWhatItDoesNotKnow) {
  const auto refusal = [](const OptimizerPlan& plan) {
    const Parameters parameters;
    return StageOptimizer::Create(
               plan, {{.parameters = parameters.All(), .lr_mult = 1, .constant_lr = false, .weight_decay = {}}})
        .status()
        .ToString();
  };
  EXPECT_THAT(refusal(Plan("adanw", 0.1, 0)), HasSubstr("did you mean 'adamw'"));
  OptimizerPlan plan = Plan("adamw", 0.1, 0);
  plan.beta2 = 1;
  EXPECT_THAT(refusal(plan), HasSubstr("optimizer beta2 is 1; it must be in [0, 1)"));
  plan = Plan("lamb", 0.1, 0);
  plan.eps = NAN;
  EXPECT_THAT(refusal(plan), HasSubstr("optimizer eps is nan"));
}

}  // namespace
}  // namespace distill
