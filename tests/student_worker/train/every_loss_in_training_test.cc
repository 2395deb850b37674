// What every loss of the table promises as part of an objective: the same term and gradient at any number of ranks, and
// on a 16-bit wire nothing but the wire's rounding.
#include "common/plan/loss_schema.h"
#include "common/plan/loss_shapes.h"
#include "student_worker/train/objective.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using torch::indexing::Slice;

constexpr int64_t kImages = 8, kClasses = 4, kSide = 6;

// A loss with one choice of each knob that names how it sums or over what: all choices of such knobs, one at a time.
struct Variant {
  std::string name, type;
  Knobs knobs;
  bool dense = false;  // logits for every pixel
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const LossSchema& schema : LossSchemas()) {
    const std::string type(schema.type);
    std::vector<Variant> of_type = {{type, type, {}, false}};
    if (schema.input == LossInput::kLabels || schema.input == LossInput::kLogits)
      of_type.push_back({type + "_dense", type, {}, true});
    for (const KnobSchema& knob : schema.knobs) {
      if (knob.type != KnobSchema::Type::kText) continue;
      for (std::string_view choice : knob.choices) {
        // Batch norms see a rank's part of the batch, those of losses too; the rest has tests of its own.
        if (choice == "auto" || choice == "error" || choice == knob.default_value || choice == "batchnorm") continue;
        if (choice == "identity") continue;  // needs equal channels
        if (knob.name == "embed_bn" || knob.name == "activation" || knob.name == "side") continue;
        if (type == "tat" && choice == "student_to_teacher") continue;
        of_type.push_back({type + "_" + std::string(knob.name) + "_" + std::string(choice),
                           type,
                           {{std::string(knob.name), std::string(choice)}},
                           false});
      }
    }
    for (Variant& variant : of_type) {
      if (type == "tat") {
        variant.knobs["embed_bn"] = std::string("frozen");
        for (const char* name : {"grid_rows", "grid_cols", "anchor_kernel", "groups"}) variant.knobs[name] = 2.0;
        if (!variant.knobs.contains("mode") && !variant.knobs.contains("reduction")) {
          variant.knobs["mode"] = std::string("hierarchical");
        }
      }
      variants.push_back(variant);
    }
  }
  return variants;
}

class EveryLossInTrainingTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { at::set_num_threads(1); }

  const LossSchema& schema() const { return *FindLossSchema(GetParam().type); }
  bool maps() const { return schema().input == LossInput::kFeatures; }
  bool own_map() const { return schema().input == LossInput::kMap; }
  bool per_pixel() const { return GetParam().dense || own_map() || ReadsLabelMaps(Plan("f32").stages[0].losses[0]); }

  // With another name, another tap.
  JobPlan Plan(const std::string& wire_dtype) const {
    LossPlan loss;
    loss.name = "loss";
    loss.type = GetParam().type;
    loss.needs_teacher = ReadsTeacher(schema().input);
    if (own_map()) loss.student_tap = "layer1", loss.student_channels = 3, loss.teacher_channels = kClasses;
    if (maps()) loss.student_tap = loss.teacher_tap = "layer1";
    loss.adapter = maps() ? "auto" : "none";
    loss.knobs = Take(CompleteKnobs(schema(), GetParam().knobs));
    if (maps()) {
      const uint32_t channels = schema().channels == ChannelRule::kAdapter ? 3 : 4;
      const MapSize size{kSide, kSide};
      std::vector<std::string> warnings;
      const Status resolved = ResolveLoss({3, size}, {channels, size}, &loss, &warnings);
      EXPECT_TRUE(resolved.ok()) << resolved;
    }
    JobPlan plan = SmallPlan({Stage("stage", WholeNet(), {loss}, 4)});
    plan.wire_dtype = wire_dtype;
    return plan;
  }

  // The whole batch. Channels have offsets of their own, as maps before a ReLU do.
  Objective::Inputs Batch() const {
    torch::manual_seed(3);
    Objective::Inputs inputs;
    const auto shape = [&](int64_t channels) {
      if (maps() || own_map()) return std::vector<int64_t>{kImages, channels, kSide, kSide};
      if (GetParam().dense) return std::vector<int64_t>{kImages, kClasses, kSide, kSide};
      return std::vector<int64_t>{kImages, kClasses};
    };
    const int64_t width = schema().channels == ChannelRule::kAdapter ? 3 : 4;
    const auto make = [&](int64_t channels, double scale) {
      torch::Tensor map = torch::randn(shape(channels)) * scale;
      if (maps()) map = map + torch::linspace(-9, 12, channels).view({1, -1, 1, 1});
      return map;
    };
    inputs.student = {make(3, 1).requires_grad_(true)};
    if (ReadsTeacher(schema().input)) inputs.teacher = {make(width, 1.5)};
    if (per_pixel()) {
      // The first images have few labelled pixels, so ranks have unequal numbers of them.
      inputs.labels = torch::randint(kClasses, {kImages, kSide, kSide}, torch::kInt64);
      inputs.labels.index_put_({Slice(0, 3), Slice(1)}, kIgnoredLabel);
    } else {
      inputs.labels = torch::randint(kClasses, {kImages}, torch::kInt64);
    }
    inputs.visible = torch::tensor({0.2, 0.0, 1.0, 0.8}, torch::kFloat32).expand({kImages, 4}).contiguous();
    inputs.progress = 0.25;
    inputs.draw = 11;
    return inputs;
  }

  // A rank's images.
  static Objective::Inputs PartOf(const Objective::Inputs& whole, int64_t rank, int64_t ranks) {
    const int64_t n = kImages / ranks, first = rank * n;
    const auto cut = [&](const torch::Tensor& tensor) { return tensor.detach().narrow(0, first, n).clone(); };
    Objective::Inputs part = whole;
    part.student = {cut(whole.student[0]).requires_grad_(true)};
    for (torch::Tensor& map : part.teacher) map = cut(map);
    part.labels = cut(whole.labels);
    part.visible = cut(whole.visible);
    part.first_image = first;
    return part;
  }

  struct Outcome {
    std::vector<double> terms;
    double weighted = 0;
    torch::Tensor gradient;                    // by the student's map
    std::vector<torch::Tensor> own_gradients;  // by the loss's own parameters
  };
  static Outcome Evaluate(const JobPlan& plan, const Objective::Inputs& inputs, CollectiveGroup* group) {
    Objective objective = Take(Objective::Create(plan, plan.stages[0]));
    RanksOfGroup ranks(group);
    if (group != nullptr) objective.SetNormRanks(&ranks);
    const Objective::Part part = Take(objective.Compute(inputs));
    EXPECT_EQ(part.report.size(), objective.report_size());
    std::vector<double> sums = part.report;
    if (group != nullptr) {
      std::vector<torch::Tensor> tensors = {torch::tensor(sums, torch::kFloat64)};
      const Status status = group->AllReduceSum(tensors);
      EXPECT_TRUE(status.ok()) << status;
      for (size_t i = 0; i < sums.size(); ++i) sums[i] = tensors[0][static_cast<int64_t>(i)].item<double>();
    }
    const Objective::Value value = Take(objective.Combine(part, sums, group));
    value.total.backward();
    Outcome outcome{value.terms, value.weighted, inputs.student[0].grad(), {}};
    for (const ParameterGroup& own : objective.OwnParameters()) {
      for (const NamedTensor& parameter : own.parameters) outcome.own_gradients.push_back(parameter.tensor.grad());
    }
    return outcome;
  }
};

INSTANTIATE_TEST_SUITE_P(Table, EveryLossInTrainingTest, testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param.name; });

double Distance(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>() / std::max(1e-12, b.abs().max().item<double>());
}

TEST_P(EveryLossInTrainingTest, TheNumberOfRanksChangesNeitherTermNorGradient) {
  const JobPlan plan = Plan("f32");
  const Objective::Inputs whole = Batch();
  const Outcome expected = Evaluate(plan, whole, nullptr);
  EXPECT_GT(expected.weighted, 0);
  EXPECT_GT(expected.gradient.abs().max().item<double>(), 0);
  for (uint32_t ranks : {2u, 4u}) {
    std::vector<Outcome> outcomes(ranks);
    OnRanks(ranks, [&](uint32_t r, std::shared_ptr<KvClient> store) {
      const Rank rank(plan, r, ranks, std::move(store));
      outcomes[r] = Evaluate(plan, PartOf(whole, r, ranks), rank.group.get());
    });
    std::vector<torch::Tensor> gradients;
    for (const Outcome& outcome : outcomes) {
      for (size_t i = 0; i < expected.terms.size(); ++i) {
        EXPECT_NEAR(outcome.terms[i], expected.terms[i], 1e-5 * std::max(1e-3, std::abs(expected.terms[i])))
            << "term " << i << " of " << ranks << " ranks";
      }
      EXPECT_EQ(outcome.weighted, outcomes[0].weighted);
      gradients.push_back(outcome.gradient / static_cast<double>(ranks));  // as the reducer averages
    }
    EXPECT_LE(Distance(torch::cat(gradients), expected.gradient), 1e-4) << ranks << " ranks";
    for (size_t i = 0; i < expected.own_gradients.size(); ++i) {
      torch::Tensor mean = torch::zeros_like(expected.own_gradients[i]);
      for (const Outcome& outcome : outcomes) mean += outcome.own_gradients[i] / static_cast<double>(ranks);
      EXPECT_LE(Distance(mean, expected.own_gradients[i]), 1e-4)
          << "own parameter " << i << " of " << ranks << " ranks";
    }
  }
}

TEST_P(EveryLossInTrainingTest, AHalfPrecisionWireCostsNoMoreThanItsRounding) {
  if (!ReadsTeacher(schema().input)) return;
  const Objective::Inputs batch = Batch();
  const auto value = [&](const torch::Tensor& teacher) {
    Objective::Inputs inputs = PartOf(batch, 0, 1);
    inputs.teacher = {teacher};
    return Evaluate(Plan("f32"), inputs, nullptr);
  };
  const torch::Tensor teacher = batch.teacher[0];
  const Outcome exact = value(teacher);
  for (const auto& [name, dtype] : {std::pair{"f16", torch::kFloat16}, std::pair{"bf16", torch::kBFloat16}}) {
    const JobPlan plan = Plan(name);
    const TapRequest request = Take(Objective::Create(plan, plan.stages[0])).teacher_taps()[0];
    if (request.encoding.dtype == WireDtype::kF32) {
      EXPECT_FALSE(maps()) << name;
      EXPECT_FALSE(request.encoding.less_row_max) << name;
      continue;
    }
    EXPECT_TRUE(maps()) << name;
    const torch::Tensor sent =
        request.encoding.less_row_max ? teacher - teacher.amax({2, 3}, /*keepdim=*/true) : teacher;
    const Outcome got = value(sent.to(dtype).to(torch::kFloat32)),
                  rounded = value(teacher.to(dtype).to(torch::kFloat32));
    const Outcome as_it_is = value(sent.to(dtype));
    EXPECT_LE(Distance(as_it_is.gradient, got.gradient), 1e-5) << name;
    const auto error = [&](const Outcome& outcome) { return Distance(outcome.gradient, exact.gradient); };
    EXPECT_LE(error(got), 2 * error(rounded) + 1e-4) << name;
    EXPECT_NEAR(got.weighted, exact.weighted, 2 * std::abs(rounded.weighted - exact.weighted) + 1e-3 * exact.weighted)
        << name;
  }
}

}  // namespace
}  // namespace distill
