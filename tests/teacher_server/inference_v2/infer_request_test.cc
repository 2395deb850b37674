// What is asked for, against what is served: each kind of wrong request has its answer.
#include "teacher_server/inference_v2/infer_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "inference/inference.pb.h"
#include "teacher_server/inference_v2/served_model.h"
#include "teacher_server/stream_limits.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TeacherModel Means() {
  TeacherModel model;
  model.served.name = "means";
  model.served.spec = ModelSpec{.arch = "channel_mean", .in_channels = 2, .image_height = 3, .image_width = 4};
  model.taps = {{"map", "Identity", {2, 3, 4}, false}, {"mean", "Mean", {2}, true}};
  model.output_shape = {2};
  return model;
}

// Two images, for the network's own output.
inference::ModelInferRequest Request() {
  inference::ModelInferRequest request;
  request.set_model_name("means");
  auto* const input = request.add_inputs();
  input->set_name("images");
  input->set_datatype("UINT8");
  for (int64_t axis : {2, 2, 3, 4}) input->add_shape(axis);
  return request;
}
std::vector<ScatteredBuffer> Raw(size_t bytes) {
  return {ScatteredBuffer::From(Buffer::FromVector(std::vector<uint8_t>(bytes, 7)))};
}
StatusOr<InferRequest> Read(const inference::ModelInferRequest& request, const std::vector<ScatteredBuffer>& raw) {
  return ReadInferRequest(request, raw, {Means()});
}

TEST(InferRequestTest, NamesTapsAndTheOutputInTheOrderAskedFor) {
  inference::ModelInferRequest request = Request();
  request.set_id("r1");
  request.set_model_version("1");
  for (const char* name : {"mean", "output", "map"}) request.add_outputs()->set_name(name);
  auto& parameters = *request.mutable_parameters();
  parameters["output_datatype"].set_string_param("BF16");
  parameters["exclusive"].set_bool_param(true);
  parameters["model_digest"].set_string_param("d1");
  parameters["timeout"].set_int64_param(1000);
  const StatusOr<InferRequest> read = Read(request, Raw(48));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->id, "r1");
  EXPECT_EQ(read->open.model, "means");
  EXPECT_EQ(read->open.digest, "d1");
  EXPECT_TRUE(read->open.exclusive_batches);
  EXPECT_FALSE(read->typed);
  EXPECT_THAT(read->outputs, ElementsAre("mean", "output", "map"));
  ASSERT_EQ(read->open.taps.size(), 3);
  EXPECT_EQ(read->open.taps[0].path, "mean");
  EXPECT_EQ(read->open.taps[1].path, "");
  EXPECT_EQ(read->open.taps[2].dtype, static_cast<int>(WireDtype::kBf16));
  EXPECT_THAT(read->shape, ElementsAre(2, 2, 3, 4));
  EXPECT_EQ(read->pixels.size, 48);
}

TEST(InferRequestTest, WithoutOutputsItIsTheNetworksOwn) {
  const StatusOr<InferRequest> read = Read(Request(), Raw(48));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->outputs, ElementsAre("output"));
  TeacherModel inner = Means();
  inner.output_shape.clear();
  EXPECT_THAT(ReadInferRequest(Request(), Raw(48), {inner}).status().message(),
              HasSubstr("has to name outputs; it has map, mean"));
}

TEST(InferRequestTest, ATapMayHaveTheNameOfTheOutput) {
  TeacherModel model = Means();
  model.taps.push_back({"output", "Identity", {9}, false});
  const std::vector<ModelOutput> outputs = OutputsOf(model);
  ASSERT_EQ(outputs.size(), 4);
  EXPECT_EQ(outputs[0].name, "network_output");
  EXPECT_EQ(outputs[0].tap, "");
  EXPECT_EQ(outputs[3].tap, "output");
}

TEST(InferRequestTest, PixelsMayComeAsNumbers) {
  inference::ModelInferRequest request = Request();
  auto* const numbers = request.mutable_inputs(0)->mutable_contents();
  for (uint32_t i = 0; i < 48; ++i) numbers->add_uint_contents(5 * i);
  const StatusOr<InferRequest> read = Read(request, {});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->typed);
  EXPECT_EQ(read->pixels.size, 48);
  EXPECT_EQ(read->pixels.data[47], 5 * 47);
  numbers->set_uint_contents(3, 256);
  EXPECT_THAT(Read(request, {}).status().message(), HasSubstr("element 3 is 256"));
  numbers->set_uint_contents(3, 0);
  numbers->add_uint_contents(1);
  EXPECT_THAT(Read(request, {}).status().message(), HasSubstr("has 48 elements, and its `contents` hold 49"));
}

TEST(InferRequestTest, WhatIsNotServedIsNotFound) {
  inference::ModelInferRequest request = Request();
  request.set_model_name("mean");
  Status status = Read(request, Raw(48)).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("did you mean 'means'? (served: means)"));
  request = Request();
  request.set_model_version("2");
  status = Read(request, Raw(48)).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("no version '2'"));
}

TEST(InferRequestTest, EachContradictionIsNamed) {
  using Request_ = inference::ModelInferRequest;
  const struct {
    std::function<void(Request_*)> change;
    std::vector<ScatteredBuffer> raw;
    std::string text;
  } kCases[] = {
      {[](Request_* r) { r->clear_inputs(); }, {}, "this one has none"},
      {[](Request_* r) { r->mutable_inputs(0)->set_name("x"); }, Raw(48), "one input, 'images'; this one has 'x'"},
      {[](Request_* r) { *r->add_inputs() = r->inputs(0); }, Raw(48), "this one has 'images', 'images'"},
      {[](Request_* r) { r->mutable_inputs(0)->set_datatype("FP32"); }, Raw(48), "datatype 'FP32'; send UINT8"},
      {[](Request_* r) { r->mutable_inputs(0)->clear_shape(); }, Raw(48), "the request's has 0 axes"},
      {[](Request_* r) { r->mutable_inputs(0)->set_shape(0, 0); }, Raw(48), "the request's is [0, 2, 3, 4]"},
      {[](Request_* r) { r->mutable_inputs(0)->set_shape(0, -1); }, Raw(48), "the request's is [-1, 2, 3, 4]"},
      {[](Request_* r) { r->mutable_inputs(0)->set_shape(0, 4097); }, Raw(48), "N in 1..4096"},
      {[](Request_* r) { r->mutable_inputs(0)->set_shape(0, (int64_t{1} << 32) + 2); }, Raw(48), "N in 1..4096"},
      {[](Request_* r) { r->mutable_inputs(0)->set_shape(3, 5); }, Raw(48), "has the shape [N, 2, 3, 4]"},
      {[](Request_*) {}, Raw(47), "of shape [2, 2, 3, 4] has 48 bytes, and raw_input_contents holds 47"},
      {[](Request_*) {}, Raw(0), "has 48 bytes, and raw_input_contents holds 0"},
      {[](Request_*) {}, {}, "has 48 elements, and its `contents` hold 0"},
      {[](Request_*) {}, {Raw(48)[0], Raw(48)[0]}, "has 2 tensors for one input"},
      {[](Request_* r) { r->mutable_inputs(0)->mutable_contents()->add_uint_contents(1); }, Raw(48), "send one"},
      {[](Request_* r) { r->mutable_inputs(0)->mutable_contents()->add_fp32_contents(1); }, {}, "in uint_contents"},
      {[](Request_* r) { r->add_outputs()->set_name("mpa"); }, Raw(48),
       "no output 'mpa'; did you mean 'map'?; it has output, map, mean"},
      {[](Request_* r) {
         for (int i = 0; i <= kMaxTaps; ++i) r->add_outputs()->set_name("map");
       },
       Raw(48), "names 257 outputs"},
      {[](Request_* r) {
         auto* const output = r->add_outputs();
         output->set_name("map");
         (*output->mutable_parameters())["classification"].set_int64_param(3);
       },
       Raw(48), "'classification' is not offered"},
      {[](Request_* r) { (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("a"); },
       Raw(48), "no shared memory here"},
      {[](Request_* r) { (*r->mutable_parameters())["sequence_id"].set_int64_param(1); }, Raw(48), "no sequences"},
      {[](Request_* r) { (*r->mutable_parameters())["exclusiv"].set_bool_param(true); }, Raw(48),
       "no parameter 'exclusiv'"},
      {[](Request_* r) { (*r->mutable_parameters())["exclusive"].set_int64_param(1); }, Raw(48), "must be a bool"},
      {[](Request_* r) { (*r->mutable_parameters())["model_digest"].set_bool_param(true); }, Raw(48),
       "must be a string"},
      {[](Request_* r) { (*r->mutable_parameters())["output_datatype"].set_string_param("INT8"); }, Raw(48),
       "the string FP32, FP16 or BF16"},
      {[](Request_* r) {
         (*r->mutable_parameters())["output_datatype"].set_string_param("FP16");
         for (int i = 0; i < 48; ++i) r->mutable_inputs(0)->mutable_contents()->add_uint_contents(1);
       },
       {},
       "cannot hold 16-bit outputs"},
  };
  for (const auto& c : kCases) {
    inference::ModelInferRequest request = Request();
    c.change(&request);
    const Status status = Read(request, c.raw).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(status.message(), HasSubstr(c.text));
  }
}

// A status travels in headers, of which gRPC takes 8 KiB.
TEST(InferRequestTest, ErrorsStayShort) {
  TeacherModel model = Means();
  for (int i = 0; i < 1000; ++i) model.taps.push_back({"blocks." + std::to_string(i), "Block", {4}, false});
  inference::ModelInferRequest request = Request();
  request.add_outputs()->set_name(std::string(100000, 'x'));
  const Status status = ReadInferRequest(request, Raw(48), {model}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_LT(status.message().size(), 4000);
  EXPECT_THAT(status.message(), HasSubstr("more, which ModelMetadata lists"));
}

}  // namespace
}  // namespace distill
