// Every loss of the table with its default knobs, on small maps or logits: the parameter is the type's name.
#ifndef DISTILL_TESTS_STUDENT_WORKER_LOSSES_EVERY_LOSS_H_
#define DISTILL_TESTS_STUDENT_WORKER_LOSSES_EVERY_LOSS_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/plan/loss_schema.h"
#include "common/plan/loss_shapes.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {

class EveryLossTest : public testing::TestWithParam<std::string_view> {
 protected:
  const LossSchema& schema() const { return *FindLossSchema(GetParam()); }
  bool maps() const { return schema().input == LossInput::kFeatures; }
  bool own_map() const { return schema().input == LossInput::kMap; }
  bool reads_teacher() const { return ReadsTeacher(schema().input); }

  // Three samples; channels differ where the loss can deal with it.
  LossInputs Inputs(torch::Dtype dtype = torch::kFloat64) const {
    torch::manual_seed(21);
    LossInputs inputs;
    const int64_t width = schema().channels == ChannelRule::kAdapter ? 3 : 4;
    inputs.student = torch::randn(maps() || own_map() ? std::vector<int64_t>{3, 3, 4, 4} : std::vector<int64_t>{3, 5},
                                  torch::kFloat64)
                         .to(dtype);
    if (reads_teacher()) {
      inputs.teacher =
          torch::randn(maps() ? std::vector<int64_t>{3, width, 4, 4} : std::vector<int64_t>{3, 5}, torch::kFloat64)
              .mul(1.5)
              .to(dtype);
    }
    if (schema().uses_labels) inputs.labels = torch::tensor({4, 0, 2}, torch::kInt64);
    if (own_map()) inputs.labels = torch::randint(5, {3, 8, 7}, torch::kInt64);
    inputs.draw = 17;
    return inputs;
  }

  // As the coordinator resolves it for these maps.
  std::unique_ptr<Loss> Make(uint64_t seed = 3) const {
    LossPlan plan;
    plan.name = GetParam();
    plan.type = GetParam();
    plan.adapter = "auto";
    plan.knobs = *CompleteKnobs(schema(), {});
    if (maps()) {
      const LossInputs inputs = Inputs();
      const auto shape = [](const torch::Tensor& map) {
        return MapShape{static_cast<uint32_t>(map.size(1)),
                        {static_cast<uint32_t>(map.size(2)), static_cast<uint32_t>(map.size(3))}};
      };
      std::vector<std::string> warnings;
      const Status resolved = ResolveLoss(shape(inputs.student), shape(inputs.teacher), &plan, &warnings);
      EXPECT_TRUE(resolved.ok()) << resolved;
      EXPECT_THAT(warnings, testing::IsEmpty());
      EXPECT_EQ(plan.adapter, "none");
    }
    if (own_map()) plan.student_channels = 3, plan.teacher_channels = 5;
    auto loss = MakeLoss(plan, seed);
    if (!loss.ok()) throw std::runtime_error(loss.status().ToString());
    return std::move(*loss);
  }
};

inline std::vector<std::string_view> LossTypes() {
  std::vector<std::string_view> types;
  for (const LossSchema& schema : LossSchemas()) types.push_back(schema.type);
  return types;
}

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_LOSSES_EVERY_LOSS_H_
