// What every loss of the table promises, whatever its formula (student_worker/losses/loss.h).
#include "tests/student_worker/losses/every_loss.h"

#include "common/plan/loss_needs.h"

namespace distill {
namespace {

using testing::HasSubstr;
using Shape = std::vector<int64_t>;

INSTANTIATE_TEST_SUITE_P(Table, EveryLossTest, testing::ValuesIn(LossTypes()),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(EveryLossTest, IsAFiniteScalarWithTheGradientOfItsValue) {
  const auto loss = InDouble(Make());
  const LossInputs inputs = Inputs();
  const auto value = loss->Compute(inputs);
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(value->dim(), 0);
  EXPECT_EQ(value->scalar_type(), torch::kFloat64);
  EXPECT_TRUE(std::isfinite(value->item<double>()));
  EXPECT_GT(value->item<double>(), 0);
  EXPECT_EQ(loss->details().size(), loss->detail_names().size());
  ExpectGradientMatchesDifferences(*loss, inputs, 1e-6);
  if (loss->module() != nullptr) ExpectParameterGradientsMatchDifferences(*loss, inputs, 1e-6);
}

TEST_P(EveryLossTest, TheTeacherIsDetachedAndUnchanged) {
  if (!reads_teacher()) return;  // nothing to detach
  const auto loss = Make();
  LossInputs inputs = Inputs(torch::kFloat32);
  const torch::Tensor before = inputs.teacher.clone();
  inputs.student.requires_grad_(true);
  inputs.teacher.requires_grad_(true);
  auto value = loss->Compute(inputs);
  ASSERT_TRUE(value.ok()) << value.status();
  value->backward();
  EXPECT_FALSE(inputs.teacher.grad().defined());
  EXPECT_TRUE(torch::equal(inputs.teacher.detach(), before));
  EXPECT_TRUE(inputs.student.grad().defined());
}

// As networks make them: channels first or last, each side its own way; the teacher's in 16 bits, too.
TEST_P(EveryLossTest, HowTheMapsLieInMemoryDoesNotMatter) {
  const auto loss = Make();
  const LossInputs plain = Inputs(torch::kFloat32);
  if (plain.student.dim() != 4) return;
  const auto wanted = Differentiate(*loss, plain);
  for (const auto& [student_last, teacher_last] : {std::pair{true, true}, {true, false}, {false, true}}) {
    const auto laid = [](const torch::Tensor& map, bool last) {
      return last && map.defined() ? map.contiguous(torch::MemoryFormat::ChannelsLast) : map;
    };
    LossInputs inputs = plain;
    inputs.student = laid(plain.student, student_last);
    inputs.teacher = laid(plain.teacher, teacher_last);
    const auto got = Differentiate(*loss, inputs);
    EXPECT_NEAR(got.loss, wanted.loss, 1e-5 * std::max(1.0, wanted.loss)) << student_last << teacher_last;
    EXPECT_TRUE(torch::allclose(got.gradient, wanted.gradient, 1e-4, 1e-6)) << student_last << teacher_last;
    if (!reads_teacher()) continue;
    inputs.teacher = laid(plain.teacher.to(torch::kBFloat16), teacher_last);
    LossInputs rounded = plain;
    rounded.teacher = plain.teacher.to(torch::kBFloat16).to(torch::kFloat32);
    const auto narrow = Differentiate(*loss, inputs), same = Differentiate(*loss, rounded);
    EXPECT_NEAR(narrow.loss, same.loss, 1e-5 * std::max(1.0, same.loss)) << student_last << teacher_last;
    EXPECT_TRUE(torch::allclose(narrow.gradient, same.gradient, 1e-4, 1e-6)) << student_last << teacher_last;
  }
}

// The teacher's map may then come less its rows' maxima.
TEST_P(EveryLossTest, ATeachersRowOffsetsChangeNothingWhereTheSchemaSaysSo) {
  LossPlan plan;
  plan.type = GetParam();
  if (NeedsOf(plan).row_offsets) return;
  const auto loss = InDouble(Make());
  LossInputs inputs = Inputs();
  const auto wanted = Differentiate(*loss, inputs);
  inputs.teacher = inputs.teacher + torch::randn({3, inputs.teacher.size(1), 1, 1}, torch::kFloat64) * 10;
  const auto got = Differentiate(*loss, inputs);
  EXPECT_NEAR(got.loss, wanted.loss, 1e-10 * std::max(1.0, wanted.loss));
  EXPECT_TRUE(torch::allclose(got.gradient, wanted.gradient, 1e-8, 1e-12));
}

// Whether backward's factor was known before or not.
TEST_P(EveryLossTest, TheExpectedWeightChangesNoResult) {
  const auto loss = Make();
  const auto gradients = [&](double expected, double factor) {
    LossInputs inputs = Inputs(torch::kFloat32);
    inputs.student.requires_grad_(true);
    inputs.weight = expected;
    const auto value = loss->Compute(inputs);
    EXPECT_TRUE(value.ok()) << value.status();
    std::vector<torch::Tensor> all = {value->detach()};
    if (loss->module() != nullptr) loss->module()->zero_grad();
    (*value * factor).backward();
    all.push_back(inputs.student.grad().clone());
    if (loss->module() == nullptr) return all;
    for (const torch::Tensor& parameter : loss->module()->parameters()) all.push_back(parameter.grad().clone());
    return all;
  };
  for (double factor : {0.37, 1.0, 250.0}) {
    const auto wanted = gradients(1, factor);
    for (double expected : {0.37, -3.0, 250.0}) {
      const auto got = gradients(expected, factor);
      ASSERT_EQ(got.size(), wanted.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(torch::allclose(got[i], wanted[i], 1e-4, 1e-7 * factor))
            << "expected " << expected << ", came " << factor << ", number " << i;
      }
    }
  }
}

TEST_P(EveryLossTest, TheOrderOfSamplesDoesNotMatter) {
  if (GetParam() == "mgd") return;  // each sample has a mask of its own, by its place in the batch
  const auto loss = InDouble(Make());
  const LossInputs inputs = Inputs();
  const torch::Tensor order = torch::tensor({2, 0, 1});
  LossInputs shuffled = inputs;
  shuffled.student = inputs.student.index_select(0, order);
  if (inputs.teacher.defined()) shuffled.teacher = inputs.teacher.index_select(0, order);
  if (inputs.labels.defined()) shuffled.labels = inputs.labels.index_select(0, order);
  const auto a = Differentiate(*loss, inputs), b = Differentiate(*loss, shuffled);
  EXPECT_NEAR(a.loss, b.loss, 1e-12 * std::max(1.0, a.loss));
  EXPECT_TRUE(torch::allclose(a.gradient.index_select(0, order), b.gradient, 1e-9, 1e-12));
}

TEST_P(EveryLossTest, SingleAndHalfPrecisionGiveTheDoubleLossOfTheSameValues) {
  const auto loss = Make();
  for (const auto& [dtype, tolerance] :
       {std::pair{torch::kFloat32, 1e-5}, std::pair{torch::kFloat16, 1e-5}, std::pair{torch::kBFloat16, 1e-5}}) {
    LossInputs inputs = Inputs(dtype), exact = Inputs(dtype);
    exact.student = exact.student.to(torch::kFloat64);
    if (exact.teacher.defined()) exact.teacher = exact.teacher.to(torch::kFloat64);
    const auto got = Differentiate(*loss, inputs), expected = Differentiate(*InDouble(Make()), exact);
    EXPECT_NEAR(got.loss, expected.loss, tolerance * std::max(1.0, expected.loss)) << dtype;
    EXPECT_EQ(got.gradient.scalar_type(), dtype);
    // The gradient comes back in the input's dtype.
    const double epsilon = dtype == torch::kFloat32 ? 1e-4 : dtype == torch::kFloat16 ? 2e-3 : 1e-2;
    EXPECT_LE((got.gradient.to(torch::kFloat64) - expected.gradient).norm().item<double>(),
              epsilon * expected.gradient.norm().item<double>())
        << dtype;
    const auto value = loss->Compute(inputs);
    EXPECT_EQ(value->scalar_type(), torch::kFloat32);
  }
}

TEST_P(EveryLossTest, TheMemoryLayoutDoesNotMatter) {
  if (!maps()) return;  // logits have one layout
  const auto loss = Make();
  const LossInputs inputs = Inputs(torch::kFloat32);
  const auto expected = Differentiate(*loss, inputs);
  for (bool student : {false, true}) {
    for (bool teacher : {false, true}) {
      LossInputs other = inputs;
      if (student) other.student = inputs.student.contiguous(torch::MemoryFormat::ChannelsLast);
      if (teacher) other.teacher = inputs.teacher.contiguous(torch::MemoryFormat::ChannelsLast);
      const auto got = Differentiate(*loss, other);
      EXPECT_NEAR(got.loss, expected.loss, 1e-6 * std::max(1.0, expected.loss));
      EXPECT_TRUE(torch::allclose(got.gradient, expected.gradient, 1e-4, 1e-6));
    }
  }
}

TEST_P(EveryLossTest, AnEmptyBatchGivesZeroAndReachesEveryParameter) {
  const auto loss = Make();
  LossInputs inputs = Inputs(torch::kFloat32);
  inputs.student = inputs.student.slice(0, 0, 0);
  if (inputs.teacher.defined()) inputs.teacher = inputs.teacher.slice(0, 0, 0);
  if (inputs.labels.defined()) inputs.labels = inputs.labels.slice(0, 0, 0);
  const auto [value, gradient] = Differentiate(*loss, inputs);
  EXPECT_EQ(value, 0.0);
  EXPECT_EQ(gradient.sizes(), inputs.student.sizes());
  EXPECT_EQ(loss->details().size(), loss->detail_names().size());
  if (loss->module() == nullptr) return;
  for (const auto& item : loss->module()->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(item.value().grad().abs().max().item<float>(), 0.0f) << item.key();
  }
}

TEST_P(EveryLossTest, WhatDoesNotFitIsRefusedWithBothShapes) {
  const auto loss = Make();
  const LossInputs good = Inputs(torch::kFloat32);
  LossInputs bad = good;
  bad.student = torch::zeros({3});
  EXPECT_THAT(Refusal(*loss, bad), HasSubstr("[3]"));
  bad = good;
  bad.student = torch::Tensor();
  EXPECT_THAT(Refusal(*loss, bad), HasSubstr("none"));
  if (!reads_teacher()) return;
  bad = good;
  bad.teacher = torch::Tensor();
  EXPECT_THAT(Refusal(*loss, bad), HasSubstr("none"));
  bad = good;
  bad.teacher = torch::cat({good.teacher, good.teacher});
  const std::string batch = Refusal(*loss, bad);
  EXPECT_THAT(batch, HasSubstr(maps() ? "[3, 3, 4, 4]" : "[3, 5]"));
  EXPECT_THAT(batch, HasSubstr("[6, "));
  bad = good;
  bad.teacher = good.teacher.to(torch::kMeta);
  const std::string device = Refusal(*loss, bad);
  EXPECT_THAT(device, HasSubstr("cpu"));
  EXPECT_THAT(device, HasSubstr("meta"));
  bad = good;
  bad.teacher = torch::zeros(good.teacher.sizes(), torch::kInt64);
  EXPECT_THAT(Refusal(*loss, bad), HasSubstr("floating point"));
  if (maps() && schema().channels == ChannelRule::kAny) return;  // any channels will do
  for (bool student : {false, true}) {
    bad = good;
    torch::Tensor& tensor = student ? bad.student : bad.teacher;
    Shape shape = tensor.sizes().vec();
    shape[1] += 4;
    tensor = torch::zeros(shape);
    EXPECT_THAT(Refusal(*loss, bad), HasSubstr(maps() ? ", 4, 4]" : ", 9]"));
  }
  if (!maps()) return;
  // Both wrong alike: only layers can tell.
  if (loss->module() == nullptr) return;
  bad.student = torch::zeros({3, 9, 4, 4});
  bad.teacher = torch::zeros({3, 9, 4, 4});
  EXPECT_THAT(Refusal(*loss, bad), HasSubstr("[3, 9, 4, 4]"));
}

TEST_P(EveryLossTest, LayersComeFromTheSeed) {
  const auto a = Make(1), b = Make(1), c = Make(2);
  ASSERT_EQ(a->module() == nullptr, b->module() == nullptr);
  if (a->module() == nullptr) return;  // no layers
  const LossInputs inputs = Inputs(torch::kFloat32);
  EXPECT_EQ(Value(*a, inputs), Value(*b, inputs));
  EXPECT_NE(Value(*a, inputs), Value(*c, inputs));
}

}  // namespace
}  // namespace distill
