// The properties of the target-aware transformer's loss, numbered as in its specification (T1 to T16), for the dense
// form in float64 and in float32 and for the tiled kernel, in both orientations; and the edges of its knobs.
#include "student_worker/losses/conv_block.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::HasSubstr;
using Shape = std::vector<int64_t>;

constexpr double kRootOfOnePlusEpsilon = 1.00000499998750006;  // undoes the frozen batch norm's division

struct Form {
  const char* name;
  torch::Dtype dtype;
  const char* impl;
  double tolerance;  // relative
};
constexpr Form kForms[] = {{"DenseDouble", torch::kFloat64, "dense", 1e-10},
                           {"DenseFloat", torch::kFloat32, "dense", 3e-5},
                           {"TiledFloat", torch::kFloat32, "tiled", 3e-5}};

Knobs With(Knobs base, const Knobs& changes) {
  for (const auto& [name, value] : changes) base[name] = value;
  return base;
}

// 1x1 embeddings, plain.
Knobs Plain(const std::string& orientation = "teacher_query") {
  return {{"mode", "plain"}, {"gamma", "conv1x1_bn"},      {"phi", "conv1x1_bn"},
          {"impl", "dense"}, {"orientation", orientation}, {"spatial_mismatch", "none"}};
}
Knobs Hierarchical(double grid, double groups, double kernel, const std::string& orientation = "teacher_query") {
  return With(Plain(orientation), {{"mode", "hierarchical"},
                                   {"grid_rows", grid},
                                   {"grid_cols", grid},
                                   {"groups", groups},
                                   {"anchor_kernel", kernel}});
}

// Anchors of 4 x 4.
Knobs Grid(double rows, double cols, double groups) {
  return With(Hierarchical(rows, groups, 4), {{"grid_cols", cols}});
}

LossInputs RandomMaps(const Shape& student, const Shape& teacher, uint64_t seed) {
  torch::manual_seed(seed);
  LossInputs inputs;
  inputs.student = torch::randn(student, torch::kFloat64);
  inputs.teacher = torch::randn(teacher, torch::kFloat64);
  return inputs;
}

LossInputs As(torch::Dtype dtype, const LossInputs& inputs) {
  LossInputs out = inputs;
  out.student = inputs.student.to(dtype);
  out.teacher = inputs.teacher.to(dtype);
  return out;
}

std::unique_ptr<Loss> Tat(Knobs knobs, uint32_t student, uint32_t teacher, torch::Dtype dtype = torch::kFloat64) {
  auto loss = Build("tat", std::move(knobs), student, teacher, 3);
  loss->module()->to(dtype);
  return loss;
}

// A linear embedding without batch norm's factor: weight [out, in, ...].
void SetLinear(const Loss& loss, const std::string& name, const torch::Tensor& weight) {
  SetParameter(loss, name + ".weight", weight);
  const torch::Tensor scale = loss.module()->named_parameters()[name + ".norm_weight"];
  SetParameter(loss, name + ".norm_weight", torch::full(scale.sizes(), kRootOfOnePlusEpsilon, torch::kFloat64));
}

torch::Tensor PermutePositions(const torch::Tensor& map, const torch::Tensor& order) {
  return map.flatten(2).index_select(2, order).view(map.sizes());
}

class TatFormsTest : public testing::TestWithParam<std::tuple<Form, std::string>> {
 protected:
  const Form& form() const { return std::get<0>(GetParam()); }
  const std::string& orientation() const { return std::get<1>(GetParam()); }
  bool teacher_query() const { return orientation() == "teacher_query"; }
  std::unique_ptr<Loss> Make(Knobs knobs, uint32_t student, uint32_t teacher) const {
    return Tat(With(std::move(knobs), {{"orientation", orientation()}, {"impl", form().impl}}), student, teacher,
               form().dtype);
  }
  double Of(const Loss& loss, const LossInputs& inputs) const { return Value(loss, As(form().dtype, inputs)); }
  LossAndGradient GradientOf(const Loss& loss, const LossInputs& inputs) const {
    return Differentiate(loss, As(form().dtype, inputs));
  }
  void ExpectClose(double value, double expected) const {
    EXPECT_NEAR(value, expected, form().tolerance * std::max(1.0, std::abs(expected)));
  }
  // The differences of sums of many squares need room in float32.
  void ExpectClose(const torch::Tensor& value, const torch::Tensor& expected) const {
    const double gap = (value - expected).abs().max().item<double>();
    EXPECT_LE(gap, 10 * form().tolerance * std::max(0.1, expected.abs().max().item<double>()));
  }
};

INSTANTIATE_TEST_SUITE_P(All, TatFormsTest,
                         testing::Combine(testing::ValuesIn(kForms),
                                          testing::Values(std::string("teacher_query"), std::string("student_query"))),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  (std::get<1>(info.param) == "teacher_query" ? "TeacherQuery" : "StudentQuery");
                         });

TEST_P(TatFormsTest, GoldenValues) {
  // Tokens: gamma (1,0) (0,1); theta (2,1) (0,1); phi (1,2) (3,-1); target (1,0) (1,0). The two targets are equal, so
  // theta tells them apart by their neighbours.
  auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}, {"theta", "conv3x3_bn"}}), 2, 2);
  SetLinear(*loss, "gamma", torch::eye(2));
  SetLinear(*loss, "phi", torch::tensor({1.0, 3.0, 2.0, -1.0}));
  torch::Tensor theta = torch::zeros({2, 2, 3, 3});
  theta[1][0][1][1] = 1;  // itself: (0, 1)
  theta[0][0][1][2] = 2;  // the right neighbour: (2, 0)
  SetLinear(*loss, "theta", theta);
  LossInputs inputs;
  inputs.student = torch::tensor({1.0, 0.0, 0.0, 1.0}).view({1, 2, 1, 2});
  inputs.teacher = torch::tensor({1.0, 1.0, 0.0, 0.0}).view({1, 2, 1, 2});
  EXPECT_NEAR(Of(*loss, inputs), teacher_query() ? 0.9720224339 : 1.0010715779, std::max(1e-9, form().tolerance / 10));
}

TEST_P(TatFormsTest, MatchesAnIndependentComposition) {
  // With wave(shape, phase) = torch.sin(0.37 * arange(numel)**2 + phase).reshape(shape), in float64:
  //   s, t = wave((2,3,8,8), .1), wave((2,4,8,8), .2)
  //   def emb(x, w, g, b):
  //     return F.batch_norm(torch.einsum('oi,nihw->nohw', w, x), None, None, g, b, True, 0., 1e-5)
  //   a = emb(s, wave((4,3), .3), wave((4,), .4), wave((4,), .5))
  //   v = emb(s, wave((4,3), .6), wave((4,), .7), wave((4,), .8))
  //   b = emb(t, wave((4,4), .9), wave((4,), 1.), wave((4,), 1.1))
  // and, for each image and for each group of p patches A[k], B[k], V[k], F[k] (tokens in rows),
  //   L = sum(B[k] @ A[k].t() for k in group)      (student_query: A[k] @ B[k].t())
  //   squares of torch.softmax(L, 1) @ V[k] - F[k] for each k, their mean over everything
  const auto make = [&](const Knobs& knobs) {
    auto loss = Make(With(knobs, {{"theta", "conv1x1_bn"}}), 3, 4);
    double phase = 0.3;
    for (const auto& [name, in] : {std::pair{"gamma", 3}, {"phi", 3}, {"theta", 4}}) {
      SetParameter(*loss, std::string(name) + ".weight", Wave({4, in}, phase));
      SetParameter(*loss, std::string(name) + ".norm_weight", Wave({4}, phase + 0.1));
      SetParameter(*loss, std::string(name) + ".norm_bias", Wave({4}, phase + 0.2));
      phase += 0.3;
    }
    return loss;
  };
  LossInputs inputs;
  inputs.student = Wave({2, 3, 8, 8}, 0.1);
  inputs.teacher = Wave({2, 4, 8, 8}, 0.2);
  ExpectClose(Of(*make(Plain()), inputs), teacher_query() ? 1.355351522904 : 1.193861940753);
  const Knobs grid = Hierarchical(4, 4, 2);
  const double patch = teacher_query() ? 1.561722999120 : 1.460399369362;
  const double anchor = teacher_query() ? 0.705231177519 : 0.704154789857;
  ExpectClose(Of(*make(With(grid, {{"anchor_weight", 0.0}})), inputs), patch);  // T5
  ExpectClose(Of(*make(With(grid, {{"patch_weight", 0.0}, {"anchor_weight", 1.0}})), inputs), anchor);
  const auto both = make(grid);
  ExpectClose(Of(*both, inputs), patch + 0.4 * anchor);
  ASSERT_EQ(both->detail_names(), (std::vector<std::string>{"patch", "anchor", "entropy", "max-weight"}));
  ExpectClose(both->details()[0].item<double>(), patch);
  ExpectClose(both->details()[1].item<double>(), anchor);
  if (teacher_query()) {
    ExpectClose(Of(*make(With(Plain(), {{"attn_scale", 0.5}})), inputs), 1.199389755802);
    ExpectClose(Of(*make(With(Plain(), {{"attn_scale", 0.0}})), inputs), 1.199389755802);  // 1 / sqrt(4)
    ExpectClose(Of(*make(With(Plain(), {{"reduction", "sum_per_image"}})), inputs), 346.969989863524);
    ExpectClose(Of(*make(With(Plain(), {{"reduction", "l2norm"}})), inputs), 18.625515796347);
  }
}

TEST_P(TatFormsTest, T1FormsAgreeInValueAndEveryGradient) {
  struct Case {
    const char* name;
    Knobs knobs;
    Shape student, teacher;
  };
  const std::string mean = "mean_all";
  std::vector<Case> cases = {
      {"one position", Plain(), {3, 3, 1, 1}, {3, 5, 1, 1}},
      {"prime sides", Plain(), {2, 3, 13, 11}, {2, 5, 13, 11}},
      {"more than a tile", Plain(), {1, 4, 17, 19}, {1, 6, 17, 19}},
      {"per sample", With(Plain(), {{"embed_bn", "per_sample"}}), {2, 3, 5, 6}, {2, 5, 5, 6}},
      {"theta", With(Plain(), {{"theta", "conv3x3_bn"}, {"gamma", "conv3x3_bn"}}), {2, 3, 6, 6}, {2, 5, 6, 6}},
      {"remainders", Hierarchical(4, 4, 4), {2, 3, 9, 10}, {2, 5, 9, 10}},
      {"patches alone", With(Hierarchical(3, 1, 2), {{"group_mode", "batch"}}), {2, 3, 7, 7}, {2, 5, 7, 7}},
      {"windows", With(Hierarchical(4, 1, 2), {{"group_mode", "spatial"}}), {2, 3, 8, 9}, {2, 5, 8, 9}},
      {"masked", With(Hierarchical(4, 2, 2), {{"remainder", "mask"}}), {2, 3, 9, 7}, {2, 5, 9, 7}},
      {"sum per image", With(Hierarchical(2, 2, 2), {{"reduction", "sum_per_image"}}), {2, 3, 6, 6}, {2, 5, 6, 6}},
      {"norm", With(Plain(), {{"reduction", "l2norm"}}), {2, 3, 4, 4}, {2, 5, 4, 4}},
  };
  if (teacher_query()) {
    cases.push_back({"unequal sizes", Plain(), {2, 3, 5, 4}, {2, 5, 7, 6}});
    cases.push_back({"unequal patches", Hierarchical(2, 2, 2), {2, 3, 4, 4}, {2, 5, 8, 8}});
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const auto loss = Make(c.knobs, c.student[1], c.teacher[1]);
    const auto exact = Tat(With(c.knobs, {{"orientation", orientation()}}), c.student[1], c.teacher[1]);
    // As seen by float32, so that only the arithmetic differs.
    const LossInputs inputs = As(torch::kFloat64, As(torch::kFloat32, RandomMaps(c.student, c.teacher, 1)));
    const auto [value, gradient] = GradientOf(*loss, inputs);
    const auto expected = Differentiate(*exact, inputs);
    ExpectClose(value, expected.loss);
    ExpectClose(gradient, expected.gradient);
    for (const auto& item : exact->module()->named_parameters()) {
      SCOPED_TRACE(item.key());
      ExpectClose(loss->module()->named_parameters()[item.key()].grad(), item.value().grad());
    }
    // T13: the memory's layout does not matter.
    LossInputs nhwc = inputs;
    nhwc.student = inputs.student.contiguous(torch::MemoryFormat::ChannelsLast);
    nhwc.teacher = inputs.teacher.contiguous(torch::MemoryFormat::ChannelsLast);
    const auto other = GradientOf(*loss, nhwc);
    ExpectClose(other.loss, expected.loss);
    ExpectClose(other.gradient, expected.gradient);
    EXPECT_NEAR(loss->details().back().item<double>(), exact->details().back().item<double>(), 1e-4);
    const size_t entropy = loss->details().size() - 2;
    EXPECT_NEAR(loss->details()[entropy].item<double>(), exact->details()[entropy].item<double>(), 1e-4);
  }
}

TEST_P(TatFormsTest, T3OneGroupOfOnePatchIsPlain) {
  const LossInputs inputs = RandomMaps({2, 3, 5, 6}, {2, 4, 5, 6}, 3);
  const auto patch = Make(With(Hierarchical(1, 1, 1), {{"anchor_weight", 0.0}}), 3, 4);
  ExpectClose(Of(*patch, inputs), Of(*Make(Plain(), 3, 4), inputs));
}

TEST_P(TatFormsTest, T4PatchesAloneAreTheMeanOfPlainOnEachPatch) {
  const LossInputs inputs = RandomMaps({2, 3, 6, 4}, {2, 4, 6, 4}, 4);
  const Knobs frozen = {{"embed_bn", "frozen"}};
  const auto plain = Make(With(Plain(), frozen), 3, 4);
  double mean = 0;
  for (int64_t y = 0; y < 2; ++y) {
    for (int64_t x = 0; x < 2; ++x) {
      const auto cut = [&](const torch::Tensor& map) {
        return map.slice(2, 3 * y, 3 * y + 3).slice(3, 2 * x, 2 * x + 2);
      };
      mean += Of(*plain, {cut(inputs.student), cut(inputs.teacher), {}}) / 4;
    }
  }
  const Knobs patches = With(With(Hierarchical(2, 4, 1), frozen), {{"anchor_weight", 0.0}});
  ExpectClose(Of(*Make(patches, 3, 4), inputs), mean);
  // group_mode batch is the same whatever groups says; none adds the patches up.
  const Knobs one_group = With(patches, {{"groups", 1.0}});
  ExpectClose(Of(*Make(With(one_group, {{"group_mode", "batch"}}), 3, 4), inputs), mean);
  ExpectClose(Of(*Make(With(one_group, {{"group_mode", "none"}}), 3, 4), inputs), 4 * mean);
}

// A window of all patches is the group of all patches; a grid of windows is plain attention on each window, with the
// window's patches stacked as one group.
TEST_P(TatFormsTest, WindowsAreGroupsOfTheirOwn) {
  const LossInputs inputs = RandomMaps({2, 3, 8, 6}, {2, 4, 8, 6}, 5);
  const Knobs frozen = {{"embed_bn", "frozen"}, {"anchor_weight", 0.0}, {"anchor_kernel", 1.0}};
  const auto windows = [&](double rows, double cols) {
    return With(With(Grid(4, 2, 1), frozen), {{"group_mode", "spatial"}, {"window_rows", rows}, {"window_cols", cols}});
  };
  ExpectClose(Of(*Make(windows(4, 2), 3, 4), inputs), Of(*Make(With(Grid(4, 2, 1), frozen), 3, 4), inputs));
  const auto one = Make(With(Grid(2, 1, 1), frozen), 3, 4);  // the two patches of a window, stacked
  double mean = 0;
  for (int64_t y = 0; y < 2; ++y) {
    for (int64_t x = 0; x < 2; ++x) {
      const auto cut = [&](const torch::Tensor& map) {
        return map.slice(2, 4 * y, 4 * y + 4).slice(3, 3 * x, 3 * x + 3);
      };
      mean += Of(*one, {cut(inputs.student), cut(inputs.teacher), {}}) / 4;
    }
  }
  ExpectClose(Of(*Make(windows(2, 1), 3, 4), inputs), mean);
}

TEST_P(TatFormsTest, AMaskedRemainderCountsEveryPositionOnce) {
  // Where nothing remains the mask changes nothing.
  const LossInputs even = RandomMaps({2, 3, 8, 8}, {2, 4, 8, 8}, 6);
  const Knobs grid = Grid(4, 4, 4);
  ExpectClose(Of(*Make(With(grid, {{"remainder", "mask"}}), 3, 4), even), Of(*Make(grid, 3, 4), even));
  // Patches alone: plain attention on patches of 2, 2 and 3 rows; the mean is over positions.
  const LossInputs inputs = RandomMaps({2, 3, 7, 4}, {2, 4, 7, 4}, 7);
  const Knobs frozen = {{"embed_bn", "frozen"}};
  const auto plain = Make(With(Plain(), frozen), 3, 4);
  double sum = 0;
  for (const auto& [begin, end] : {std::pair{0, 2}, {2, 4}, {4, 7}}) {
    const auto cut = [&](const torch::Tensor& map) { return map.slice(2, begin, end); };
    sum += Of(*plain, {cut(inputs.student), cut(inputs.teacher), {}}) * (end - begin);
  }
  const Knobs patches = With(With(Grid(3, 1, 3), frozen), {{"anchor_weight", 0.0}, {"remainder", "mask"}});
  ExpectClose(Of(*Make(patches, 3, 4), inputs), sum / 7);
  // Anchors of 4 rows and of the 3 that are left, which their mean is over.
  const Knobs anchors = With(With(Grid(1, 1, 1), frozen), {{"patch_weight", 0.0}, {"remainder", "mask"}});
  const auto pooled = [&](const torch::Tensor& map) {
    return torch::cat({map.slice(2, 0, 4).mean({2, 3}, true), map.slice(2, 4, 7).mean({2, 3}, true)}, 2);
  };
  ExpectClose(Of(*Make(With(anchors, {{"anchor_weight", 1.0}}), 3, 4), inputs),
              Of(*plain, {pooled(inputs.student), pooled(inputs.teacher), {}}));
}

// Gamma reads the student's channels 0 and 1 (A), phi 2 and 3 (V), theta the teacher's channels 0 and 1 (B). Phi puts
// out 0 where the teacher has B, so that B's part as a target is the same in any order; the rest (F) is the target. So
// a, v, b and the target can be permuted one by one.
class TatPermutationTest : public TatFormsTest {
 protected:
  std::unique_ptr<Loss> Separated() const {
    auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}, {"theta", "conv1x1_bn"}}), 4, 4);
    torch::Tensor gamma = Wave({4, 4}, 0.3), phi = Wave({4, 4}, 0.6), theta = Wave({4, 4}, 0.9);
    gamma.slice(1, 2, 4).zero_();
    phi.slice(1, 0, 2).zero_();
    phi.slice(0, 0, 2).zero_();
    theta.slice(1, 2, 4).zero_();
    SetLinear(*loss, "gamma", gamma);
    SetLinear(*loss, "phi", phi);
    SetLinear(*loss, "theta", theta);
    return loss;
  }
  // `which`: letters of A, V, B, F.
  static LossInputs Permuted(const LossInputs& inputs, const std::string& which) {
    torch::manual_seed(77);
    const torch::Tensor order = torch::randperm(inputs.student.size(2) * inputs.student.size(3));
    LossInputs out = inputs;
    out.student = inputs.student.clone();
    out.teacher = inputs.teacher.clone();
    for (char letter : which) {
      torch::Tensor& map = letter == 'A' || letter == 'V' ? out.student : out.teacher;
      const int64_t begin = letter == 'A' || letter == 'B' ? 0 : 2;
      const torch::Tensor part = map.slice(1, begin, begin + 2).contiguous();
      map.slice(1, begin, begin + 2).copy_(PermutePositions(part, order));
    }
    return out;
  }
};

INSTANTIATE_TEST_SUITE_P(All, TatPermutationTest,
                         testing::Combine(testing::ValuesIn(kForms),
                                          testing::Values(std::string("teacher_query"), std::string("student_query"))),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  (std::get<1>(info.param) == "teacher_query" ? "TeacherQuery" : "StudentQuery");
                         });

TEST_P(TatPermutationTest, T6AndT7WhichPermutationsChangeTheLoss) {
  const auto loss = Separated();
  const LossInputs inputs = RandomMaps({2, 4, 4, 5}, {2, 4, 4, 5}, 6);
  const double value = Of(*loss, inputs);
  const std::vector<std::string> harmless =
      teacher_query() ? std::vector<std::string>{"AV", "BF", "AVBF"} : std::vector<std::string>{"AF", "BV", "AVBF"};
  const std::vector<std::string> harmful = teacher_query() ? std::vector<std::string>{"A", "V", "B", "F", "AF"}
                                                           : std::vector<std::string>{"AV", "A", "V", "B", "F", "BF"};
  for (const std::string& which : harmless) {
    SCOPED_TRACE(which);
    ExpectClose(Of(*loss, Permuted(inputs, which)), value);
  }
  for (const std::string& which : harmful) {
    EXPECT_GT(std::abs(Of(*loss, Permuted(inputs, which)) - value), 1e-3) << which;
  }
}

TEST_P(TatFormsTest, T8AConstantOnTheKeysChangesNothing) {
  auto loss = Make(With(Plain(), {{"theta", "conv1x1_bn"}}), 3, 4);
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 8);
  const double value = GradientOf(*loss, inputs).loss;
  const std::string key = teacher_query() ? "gamma" : "theta", query = teacher_query() ? "theta" : "gamma";
  const auto bias_gradient = [&](const std::string& name) {
    return loss->module()->named_parameters()[name + ".norm_bias"].grad().abs().max().item<double>();
  };
  EXPECT_LT(bias_gradient(key), 1e3 * form().tolerance * 1e-3);
  EXPECT_GT(bias_gradient(query), 1e-3);
  const torch::Tensor constant = torch::tensor({0.5, -1.0, 2.0, 0.25});
  SetParameter(*loss, key + ".norm_bias", constant);
  ExpectClose(Of(*loss, inputs), value);
  SetParameter(*loss, query + ".norm_bias", constant);
  EXPECT_GT(std::abs(Of(*loss, inputs) - value), 1e-3);
}

TEST_P(TatFormsTest, T9OutputsAreMixturesOfTheValues) {
  // One channel, one target of value x above all values v: loss = (x - o)^2, so o is known.
  if (!teacher_query()) return;  // with one teacher pixel, student_query has one student pixel: T15's case
  auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}}), 1, 1);
  SetLinear(*loss, "gamma", torch::ones({1}));
  SetLinear(*loss, "phi", torch::ones({1}));
  const LossInputs inputs = RandomMaps({1, 1, 3, 5}, {1, 1, 1, 1}, 9);
  const double low = inputs.student.min().item<double>(), high = inputs.student.max().item<double>();
  for (double x : {high + 0.5, high + 2, high + 10}) {
    const double o = x - std::sqrt(Of(*loss, {inputs.student, torch::full({1, 1, 1, 1}, x, torch::kFloat64), {}}));
    EXPECT_GE(o, low);
    EXPECT_LE(o, high + 1e-4);
  }
  EXPECT_EQ(loss->detail_names(), (std::vector<std::string>{"entropy", "max-weight"}));
}

TEST_P(TatFormsTest, T9EntropyAndLargestWeightLieInTheirRanges) {
  const auto loss = Make(Plain(), 3, 4);
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 10);
  Of(*loss, inputs);
  const double entropy = loss->details()[0].item<double>(), weight = loss->details()[1].item<double>();
  EXPECT_GT(entropy, 0);
  EXPECT_LT(entropy, std::log(16.0));
  EXPECT_GT(weight, 1.0 / 16);
  EXPECT_LE(weight, 1.0);
  // Logits of 0: uniform.
  const auto uniform = Make(With(Plain(), {{"attn_scale", 1e-9}}), 3, 4);
  Of(*uniform, inputs);
  EXPECT_NEAR(uniform->details()[0].item<double>(), std::log(16.0), 1e-5);
  EXPECT_NEAR(uniform->details()[1].item<double>(), 1.0 / 16, 1e-5);
}

TEST_P(TatFormsTest, T10AnchorsOfOnePixelArePlainAndOneAnchorComparesMeans) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 11);
  const Knobs anchors = {{"patch_weight", 0.0}, {"anchor_weight", 1.0}, {"embed_bn", "frozen"}};
  const auto plain = Make(With(Plain(), {{"embed_bn", "frozen"}}), 3, 4);
  ExpectClose(Of(*Make(With(Hierarchical(1, 1, 1), anchors), 3, 4), inputs), Of(*plain, inputs));
  const auto whole = Make(With(Hierarchical(1, 1, 4), anchors), 3, 4);
  const torch::Tensor phi =
      whole->module()->named_parameters()["phi.weight"].detach().to(torch::kFloat64).flatten(1) / kRootOfOnePlusEpsilon;
  const torch::Tensor made = inputs.student.mean({2, 3}).matmul(phi.t());
  ExpectClose(Of(*whole, inputs), (made - inputs.teacher.mean({2, 3})).square().mean().item<double>());
}

TEST_P(TatFormsTest, T11ConstantValuesEqualToAConstantTargetGiveZeroWhateverTheLogits) {
  auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}}), 3, 4);
  SetParameter(*loss, "phi.weight", torch::zeros({4, 3}));
  const torch::Tensor constant = torch::tensor({1.0, -2.0, 0.5, 3.0});
  SetParameter(*loss, "phi.norm_bias", constant);
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 12);
  inputs.teacher = constant.to(torch::kFloat64).view({1, 4, 1, 1}).expand({2, 4, 4, 4}).contiguous();
  EXPECT_LT(Of(*loss, inputs), form().tolerance * 1e-2);
}

TEST_P(TatFormsTest, T11EqualMapsGiveZeroOnlyAsTheAttentionBecomesHard) {
  const Knobs identity = With(Plain(), {{"gamma", "identity"}, {"phi", "identity"}});
  torch::Tensor map = RandomMaps({1, 6, 4, 4}, {1}, 13).student;
  EXPECT_GT(Of(*Make(identity, 6, 6), {map, map.clone(), {}}), 1e-3);
  map = map / map.norm(2, 1, true);
  EXPECT_LT(Of(*Make(With(identity, {{"attn_scale", 1000.0}}), 6, 6), {map, map.clone(), {}}), 1e-8);
}

TEST_P(TatFormsTest, T12ScalingValuesAndTargetWithTheLogitsFixedIsQuadratic) {
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 14);
  auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}}), 3, 4);
  const double value = Of(*loss, inputs);
  const auto scale = [&](const char* name, double factor) {
    SetParameter(*loss, name, loss->module()->named_parameters()[name].detach() * factor);
  };
  scale("phi.weight", 3);
  scale("gamma.weight", 1.0 / 3);  // theta is the teacher's map itself, which grows with the target
  inputs.teacher = inputs.teacher * 3;
  ExpectClose(Of(*loss, inputs), 9 * value);
}

TEST_P(TatFormsTest, T13TheTeacherGetsNoGradientAndStaysAsItIs) {
  for (const char* theta : {"identity", "conv1x1_bn"}) {
    const auto loss = Make(With(Plain(), {{"theta", theta}}), 3, 4);
    LossInputs inputs = As(form().dtype, RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 15));
    const torch::Tensor before = inputs.teacher.clone();
    inputs.student.requires_grad_(true);
    inputs.teacher.requires_grad_(true);
    auto value = loss->Compute(inputs);
    ASSERT_TRUE(value.ok()) << value.status();
    value->backward();
    EXPECT_FALSE(inputs.teacher.grad().defined());
    EXPECT_TRUE(torch::equal(inputs.teacher.detach(), before));
    const auto names = loss->module()->named_parameters();
    EXPECT_EQ(names.contains("theta.weight"), std::string(theta) != "identity");
    for (const auto& item : names) EXPECT_TRUE(item.value().grad().defined()) << item.key();
  }
}

TEST_P(TatFormsTest, T15AWeightOfZeroIsTheGradientWithoutTheBranch) {
  const LossInputs inputs = RandomMaps({2, 3, 6, 6}, {2, 4, 6, 6}, 16);
  const auto with = [&](double patch, double anchor) {
    return GradientOf(*Make(With(Hierarchical(2, 2, 3), {{"patch_weight", patch}, {"anchor_weight", anchor}}), 3, 4),
                      inputs);
  };
  const auto patch = with(1, 0), anchor = with(0, 1), both = with(0.5, 2);
  ExpectClose(both.loss, 0.5 * patch.loss + 2 * anchor.loss);
  ExpectClose(both.gradient, 0.5 * patch.gradient + 2 * anchor.gradient);
}

TEST_P(TatFormsTest, T16SamplesDoNotSeeEachOtherWithoutBatchStatistics) {
  const LossInputs inputs = RandomMaps({3, 3, 4, 4}, {3, 4, 4, 4}, 17);
  const torch::Tensor order = torch::tensor({2, 0, 1});
  const LossInputs shuffled{inputs.student.index_select(0, order), inputs.teacher.index_select(0, order), {}};
  for (const char* norm : {"batch", "per_sample", "frozen"}) {
    SCOPED_TRACE(norm);
    const auto loss = Make(With(Plain(), {{"embed_bn", norm}, {"theta", "conv1x1_bn"}}), 3, 4);
    const double value = Of(*loss, inputs);
    ExpectClose(Of(*loss, shuffled), value);
    double mean = 0;
    for (int64_t n = 0; n < 3; ++n) {
      mean += Of(*loss, {inputs.student.slice(0, n, n + 1), inputs.teacher.slice(0, n, n + 1), {}}) / 3;
    }
    if (std::string(norm) == "batch") {
      EXPECT_GT(std::abs(mean - value), 1e-4);
    } else {
      ExpectClose(mean, value);
    }
  }
}

TEST_P(TatFormsTest, PerSampleIsBatchNormFedOneSampleAtATime) {
  const LossInputs inputs = RandomMaps({3, 3, 4, 4}, {3, 4, 4, 4}, 18);
  const auto batch = Make(Plain(), 3, 4), alone = Make(With(Plain(), {{"embed_bn", "per_sample"}}), 3, 4);
  double mean = 0;
  for (int64_t n = 0; n < 3; ++n) {
    mean += Of(*batch, {inputs.student.slice(0, n, n + 1), inputs.teacher.slice(0, n, n + 1), {}}) / 3;
  }
  ExpectClose(Of(*alone, inputs), mean);
}

TEST_P(TatFormsTest, OnePositionComparesPhiWithTheTargetAndTeachesGammaAndThetaNothing) {
  const auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}, {"theta", "conv1x1_bn"}}), 3, 4);
  const LossInputs inputs = RandomMaps({2, 3, 1, 1}, {2, 4, 1, 1}, 19);
  const auto [value, gradient] = GradientOf(*loss, inputs);
  const auto parameters = loss->module()->named_parameters();
  const torch::Tensor phi = parameters["phi.weight"].detach().to(torch::kFloat64).flatten(1) / kRootOfOnePlusEpsilon;
  ExpectClose(value,
              (inputs.student.flatten(1).matmul(phi.t()) - inputs.teacher.flatten(1)).square().mean().item<double>());
  for (const char* name : {"gamma.weight", "gamma.norm_weight", "theta.weight", "theta.norm_bias"}) {
    EXPECT_EQ(parameters[name].grad().abs().max().item<double>(), 0.0) << name;
  }
  EXPECT_GT(gradient.abs().max().item<double>(), 0.0);
  EXPECT_NEAR(loss->details()[0].item<double>(), 0, 1e-6);
  EXPECT_NEAR(loss->details()[1].item<double>(), 1, 1e-6);
}

TEST_P(TatFormsTest, TheNormOfZeroHasNoGradientRatherThanNaN) {
  const auto loss = Make(With(Plain(), {{"gamma", "identity"}, {"phi", "identity"}, {"reduction", "l2norm"}}), 3, 3);
  const torch::Tensor map = RandomMaps({2, 3, 1, 1}, {1}, 20).student;
  const auto [value, gradient] = GradientOf(*loss, {map, map.clone(), {}});
  EXPECT_EQ(value, 0.0);
  EXPECT_EQ(gradient.abs().max().item<double>(), 0.0);
}

TEST_P(TatFormsTest, DroppedPixelsDoNotCount) {
  // 9x9 in 4x4 patches of 2x2, anchors of 2x2: the last row and column are in neither.
  const auto loss = Make(With(Hierarchical(4, 4, 2), {{"embed_bn", "frozen"}}), 3, 4);
  LossInputs inputs = RandomMaps({2, 3, 9, 9}, {2, 4, 9, 9}, 21);
  const auto [value, gradient] = GradientOf(*loss, inputs);
  EXPECT_EQ(gradient.slice(2, 8, 9).abs().max().item<double>(), 0.0);
  EXPECT_EQ(gradient.slice(3, 8, 9).abs().max().item<double>(), 0.0);
  EXPECT_GT(gradient.slice(2, 0, 8).slice(3, 0, 8).abs().min().item<double>(), 0.0);
  inputs.student.slice(2, 8, 9).fill_(100);
  inputs.teacher.slice(3, 8, 9).fill_(-100);
  ExpectClose(Of(*loss, inputs), value);
  EXPECT_THAT(Refusal(*Make(With(Hierarchical(4, 4, 2), {{"remainder", "error"}}), 3, 4), As(form().dtype, inputs)),
              HasSubstr("17 positions"));
}

TEST_P(TatFormsTest, LargeActivationsStayFinite) {
  // Logits of 1e4 and more, beyond float16's exponent.
  const auto loss = Make(With(Plain(), {{"embed_bn", "frozen"}}), 3, 4);
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 22);
  inputs.student = (inputs.student * 300).to(torch::kFloat16);
  inputs.teacher = (inputs.teacher * 300).relu().to(torch::kFloat16);
  const auto [value, gradient] = Differentiate(*loss, inputs);
  EXPECT_TRUE(std::isfinite(value));
  EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST_P(TatFormsTest, HalfPrecisionInputsGiveTheLossOfTheirRoundedValues) {
  if (form().dtype == torch::kFloat64) return;
  const auto loss = Make(Plain(), 3, 4);
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 23);
  for (auto dtype : {torch::kBFloat16, torch::kFloat16}) {
    const LossInputs half = As(dtype, inputs);
    EXPECT_EQ(Value(*loss, half), Value(*loss, As(torch::kFloat32, half)));
    EXPECT_EQ(Differentiate(*loss, half).gradient.scalar_type(), dtype);
  }
}

TEST_P(TatFormsTest, NaNOfTheTeacherShowsInTheLoss) {
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 4, 4}, 24);
  inputs.teacher[1][2][1][3] = std::nan("");
  for (const Knobs& knobs : {Plain(), Hierarchical(2, 2, 2)}) {
    EXPECT_TRUE(std::isnan(Of(*Make(knobs, 3, 4), inputs)));
  }
}

TEST_P(TatFormsTest, AnEmptyBatchGivesZeroAndReachesEveryParameter) {
  for (const Knobs& knobs : {Plain(), Hierarchical(2, 2, 2)}) {
    for (const char* norm : {"batch", "per_sample", "frozen"}) {
      const auto loss = Make(With(knobs, {{"theta", "conv1x1_bn"}, {"embed_bn", norm}}), 3, 4);
      const auto [value, gradient] = GradientOf(*loss, {torch::zeros({0, 3, 4, 4}), torch::zeros({0, 4, 4, 4}), {}});
      EXPECT_EQ(value, 0.0);
      EXPECT_EQ(gradient.sizes(), (Shape{0, 3, 4, 4}));
      for (const auto& item : loss->module()->named_parameters()) {
        ASSERT_TRUE(item.value().grad().defined()) << item.key() << " " << norm;
        EXPECT_EQ(item.value().grad().abs().max().item<double>(), 0.0) << item.key() << " " << norm;
      }
      EXPECT_EQ(loss->details().size(), loss->detail_names().size());
    }
  }
}

TEST(TatLossTest, T2GradientsOfMapAndEmbeddingsMatchDifferences) {
  for (const char* orientation : {"teacher_query", "student_query"}) {
    for (const Knobs& knobs :
         {With(Plain(orientation), {{"theta", "conv1x1_bn"}}),
          With(Plain(orientation), {{"gamma", "conv3x3_bn"}, {"phi", "conv3x3_bn"}, {"embed_bn", "per_sample"}}),
          With(Plain(orientation), {{"reduction", "l2norm"}, {"embed_bn", "frozen"}, {"attn_scale", 0.0}}),
          With(Hierarchical(2, 2, 2, orientation), {{"reduction", "sum_per_image"}}),
          With(Hierarchical(2, 2, 2, orientation), {{"group_mode", "none"}})}) {
      const auto loss = Tat(knobs, 2, 3);
      const LossInputs inputs = RandomMaps({2, 2, 4, 4}, {2, 3, 4, 4}, 2);
      ExpectGradientMatchesDifferences(*loss, inputs, 1e-6);
      ExpectParameterGradientsMatchDifferences(*loss, inputs, 1e-6);
    }
  }
}

TEST(TatLossTest, MapsOfDifferentSizeFollowTheirKnob) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 8, 8}, 25);
  EXPECT_THAT(Refusal(*Tat(Plain("student_query"), 3, 4), inputs), HasSubstr("spatial_mismatch"));
  const auto resized = [&](const char* how) {
    return Value(*Tat(With(Plain("student_query"), {{"spatial_mismatch", how}}), 3, 4), inputs);
  };
  const auto equal = Tat(Plain("student_query"), 3, 4);
  const auto bilinear = [](const torch::Tensor& map, int64_t side) {
    return torch::upsample_bilinear2d(map, {side, side}, false);
  };
  EXPECT_DOUBLE_EQ(resized("teacher_to_student"), Value(*equal, {inputs.student, bilinear(inputs.teacher, 4), {}}));
  EXPECT_DOUBLE_EQ(resized("student_to_teacher"), Value(*equal, {bilinear(inputs.student, 8), inputs.teacher, {}}));
  EXPECT_NEAR(resized("pool_larger"), Value(*equal, {inputs.student, torch::avg_pool2d(inputs.teacher, 2), {}}), 1e-12);
}

TEST(TatLossTest, AnchorsOfEachSideFollowItsSize) {
  // The teacher's kernel is 4; the student's map is half as large, so its kernel is 2: two by two anchors on both.
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 4, 8, 8}, 26);
  const Knobs anchors = {{"patch_weight", 0.0}, {"anchor_weight", 1.0}, {"embed_bn", "frozen"}};
  const auto loss = Tat(With(Hierarchical(1, 1, 4), anchors), 3, 4);
  const auto plain = Tat(With(Plain(), {{"embed_bn", "frozen"}}), 3, 4);
  // Frozen 1x1 embeddings commute with averaging.
  const double expected =
      Value(*plain, {torch::avg_pool2d(inputs.student, 2), torch::avg_pool2d(inputs.teacher, 4), {}});
  EXPECT_NEAR(Value(*loss, inputs), expected, 1e-12);
  const auto by_grid = Tat(With(Hierarchical(1, 1, 1), With(anchors, {{"anchor_grid", 2.0}})), 3, 4);
  EXPECT_NEAR(Value(*by_grid, inputs), expected, 1e-12);
}

TEST(TatLossTest, WrongShapesAndKnobsAreRefused) {
  const auto loss = Tat(Plain(), 3, 4);
  const auto refusal = [&](Shape student, Shape teacher) {
    return Refusal(*loss, {torch::zeros(student), torch::zeros(teacher), {}});
  };
  EXPECT_THAT(refusal({2, 5, 4, 4}, {2, 4, 4, 4}), HasSubstr("[2, 5, 4, 4]"));
  EXPECT_THAT(refusal({2, 3, 4, 4}, {2, 1, 4, 4}), HasSubstr("[2, 1, 4, 4]"));
  EXPECT_THAT(refusal({2, 3, 4, 4}, {3, 4, 4, 4}), HasSubstr("same number of samples"));
  EXPECT_THAT(refusal({2, 3, 4}, {2, 4, 4}), HasSubstr("4 axes"));
  EXPECT_THAT(Refusal(*Tat(Hierarchical(8, 8, 1), 3, 4), {torch::zeros({2, 3, 4, 4}), torch::zeros({2, 4, 4, 4}), {}}),
              HasSubstr("without a position"));
  for (const Knobs& knobs :
       {With(Plain(), {{"gamma", "identity"}}), With(Plain(), {{"phi", "auto"}}), With(Plain(), {{"mode", "auto"}}),
        With(Hierarchical(2, 2, 2), {{"patch_weight", 0.0}, {"anchor_weight", 0.0}})}) {
    EXPECT_THROW(Tat(knobs, 3, 4), std::runtime_error);
  }
  EXPECT_THROW(Tat(Plain(), 0, 4), std::runtime_error);
}

TEST(TatLossTest, EmbeddingsComeFromTheSeed) {
  const auto a = Build("tat", Plain(), 3, 4, 7), b = Build("tat", Plain(), 3, 4, 7), c = Build("tat", Plain(), 3, 4, 8);
  const auto weight = [](const Loss& loss, const char* name) { return loss.module()->named_parameters()[name]; };
  EXPECT_TRUE(torch::equal(weight(*a, "gamma.weight"), weight(*b, "gamma.weight")));
  EXPECT_FALSE(torch::equal(weight(*a, "gamma.weight"), weight(*c, "gamma.weight")));
  EXPECT_FALSE(torch::equal(weight(*a, "gamma.weight"), weight(*a, "phi.weight")));
}

// compute_dtype bf16: what goes into the attention is rounded, and everything after that is as in float32.
TEST(TatComputeDtypeTest, EqualsTheLossOfRoundedMaps) {
  const LossInputs maps = As(torch::kFloat32, RandomMaps({2, 4, 8, 8}, {2, 4, 8, 8}, 51));
  LossInputs rounded = maps;
  rounded.student = maps.student.to(torch::kBFloat16).to(torch::kFloat32);
  rounded.teacher = maps.teacher.to(torch::kBFloat16).to(torch::kFloat32);
  const Knobs identity = {{"gamma", "identity"}, {"phi", "identity"}};  // the maps themselves go in
  for (const Knobs& shape : {Plain(), Plain("student_query"), Hierarchical(4, 8, 2)}) {
    for (const std::string impl : {"tiled", "dense"}) {
      const Knobs knobs = With(With(shape, identity), {{"impl", impl}});
      const LossAndGradient got = Differentiate(*Build("tat", With(knobs, {{"compute_dtype", "bf16"}}), 4, 4), maps);
      const LossAndGradient expected = Differentiate(*Build("tat", knobs, 4, 4), rounded);
      EXPECT_NEAR(got.loss, expected.loss, 1e-6 * expected.loss) << impl;
      EXPECT_LT((got.gradient - expected.gradient).abs().max().item<double>(),
                1e-5 * expected.gradient.abs().max().item<double>())
          << impl;
      EXPECT_EQ(got.gradient.scalar_type(), torch::kFloat32);
      EXPECT_NE(got.loss, Differentiate(*Build("tat", knobs, 4, 4), maps).loss) << "nothing was rounded";
    }
  }
}

TEST(TatComputeDtypeTest, TheEmbeddingsLearnInFloat32) {
  const LossInputs maps = As(torch::kFloat32, RandomMaps({2, 3, 6, 6}, {2, 4, 6, 6}, 52));
  std::map<std::string, torch::Tensor> gradients;
  double loss = 0;
  for (const std::string impl : {"tiled", "dense"}) {
    const auto tat = Build("tat", With(Plain(), {{"impl", impl}, {"compute_dtype", "bf16"}}), 3, 4);
    const double value = Differentiate(*tat, maps).loss;
    if (impl == "tiled") loss = value;
    EXPECT_NEAR(value, loss, 1e-5 * loss);
    for (const auto& item : tat->module()->named_parameters()) {
      const torch::Tensor gradient = item.value().grad();
      EXPECT_EQ(gradient.scalar_type(), torch::kFloat32);
      const auto [before, first] = gradients.emplace(item.key(), gradient.clone());
      if (first) continue;
      EXPECT_LT((gradient - before->second).abs().max().item<double>(),
                1e-4 * std::max(1e-3, gradient.abs().max().item<double>()))
          << item.key();
    }
  }
}

}  // namespace
}  // namespace distill
