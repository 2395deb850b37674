#include "teacher_server/inference_v2/infer_request.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/wire/limits.h"
#include "inference/inference.pb.h"
#include "teacher_server/inference_v2/served_model.h"
#include "teacher_server/stream_limits.h"

namespace distill {
namespace {

using Parameters = google::protobuf::Map<std::string, inference::InferParameter>;
using InputTensor = inference::ModelInferRequest::InferInputTensor;

// What a client wrote, as an error may repeat it.
std::string Quoted(const std::string& text) {
  return text.size() <= kMaxNameBytes ? StrCat("'", text, "'") : StrCat("'", text.substr(0, kMaxNameBytes), "...'");
}

Status Wrong(std::string_view name, std::string_view what) {
  return absl::InvalidArgumentError(StrCat("parameter '", name, "' must be ", what));
}

Status ReadParameters(const Parameters& parameters, StreamOpen* open, WireDtype* dtype) {
  using Value = inference::InferParameter;
  for (const auto& [name, value] : parameters) {
    if (name == "output_datatype") {
      const std::string& text = value.string_param();
      if (text == "FP32") {
        *dtype = WireDtype::kF32;
      } else if (text == "FP16") {
        *dtype = WireDtype::kF16;
      } else if (text == "BF16") {
        *dtype = WireDtype::kBf16;
      } else {
        return Wrong(name, "the string FP32, FP16 or BF16");
      }
    } else if (name == "exclusive") {
      if (value.parameter_choice_case() != Value::kBoolParam) return Wrong(name, "a bool");
      open->exclusive_batches = value.bool_param();
    } else if (name == "model_digest") {
      if (value.parameter_choice_case() != Value::kStringParam) return Wrong(name, "a string");
      open->digest = value.string_param();
    } else if (name.starts_with("sequence_")) {
      return absl::InvalidArgumentError(StrCat("parameter ", Quoted(name),
                                               ": models keep nothing from one request to the next, so there are no "
                                               "sequences; leave it out"));
    } else if (name != "priority" && name != "timeout" && name != "triton_enable_empty_final_response") {
      return absl::InvalidArgumentError(StrCat("there is no parameter ", Quoted(name),
                                               "; there are output_datatype, exclusive and model_digest (priority and "
                                               "timeout are taken, and change nothing: use the call's deadline)"));
    }
  }
  return OkStatus();
}

Status NoParameters(const Parameters& parameters, std::string_view of) {
  if (parameters.empty()) return OkStatus();
  const std::string& name = parameters.begin()->first;
  return absl::InvalidArgumentError(StrCat(
      of, ": parameter ", Quoted(name), " is not offered",
      name.starts_with("shared_memory") ? "; there is no shared memory here: send the tensor in the request" : "",
      name == "classification" ? "; the output comes as the network gives it" : ""));
}

// N, C, H, W.
StatusOr<std::vector<uint32_t>> ReadShape(const InputTensor& input, const TeacherModel& model) {
  const ModelSpec& spec = model.served.spec;
  const std::string takes =
      StrCat("input '", input.name(), "' of model '", model.served.name, "' has the shape [N, ", spec.in_channels, ", ",
             spec.image_height, ", ", spec.image_width, "], N in 1..", kMaxBatchImages);
  if (input.shape_size() != 4) {
    return absl::InvalidArgumentError(StrCat(takes, "; the request's has ", input.shape_size(), " axes"));
  }
  const int64_t n = input.shape(0);
  if (n < 1 || n > kMaxBatchImages || input.shape(1) != spec.in_channels || input.shape(2) != spec.image_height ||
      input.shape(3) != spec.image_width) {
    return absl::InvalidArgumentError(StrCat(takes, "; the request's is ", ShapeText(input.shape())));
  }
  return std::vector<uint32_t>{static_cast<uint32_t>(n), spec.in_channels, spec.image_height, spec.image_width};
}

// How many elements of any type.
int64_t Elements(const inference::InferTensorContents& contents) {
  return int64_t{contents.bool_contents_size()} + contents.int_contents_size() + contents.int64_contents_size() +
         contents.uint_contents_size() + contents.uint64_contents_size() + contents.fp32_contents_size() +
         contents.fp64_contents_size() + contents.bytes_contents_size();
}

StatusOr<Buffer> ReadPixels(const InputTensor& input, const std::vector<ScatteredBuffer>& raw, uint64_t bytes) {
  const inference::InferTensorContents& contents = input.contents();
  const std::string what = StrCat("input '", input.name(), "' of shape ", ShapeText(input.shape()));
  if (!raw.empty()) {
    if (Elements(contents) > 0) {
      return absl::InvalidArgumentError(StrCat(what, " comes both in `contents` and in raw_input_contents; send one"));
    }
    if (raw.size() != 1) {
      return absl::InvalidArgumentError(
          StrCat("raw_input_contents has ", raw.size(), " tensors for one input; it must have one"));
    }
    if (raw[0].size != bytes) {
      return absl::InvalidArgumentError(
          StrCat(what, " has ", bytes, " bytes, and raw_input_contents holds ", raw[0].size));
    }
    return raw[0].Joined();
  }
  if (Elements(contents) != contents.uint_contents_size()) {
    return absl::InvalidArgumentError(
        StrCat(what, ": elements of UINT8 are in uint_contents, or in raw_input_contents"));
  }
  if (contents.uint_contents_size() != bytes) {
    return absl::InvalidArgumentError(
        StrCat(what, " has ", bytes, " elements, and its `contents` hold ", contents.uint_contents_size()));
  }
  std::vector<uint8_t> pixels;
  pixels.reserve(bytes);
  for (const uint32_t value : contents.uint_contents()) {
    if (value > 255) {
      return absl::InvalidArgumentError(
          StrCat(what, ": element ", pixels.size(), " is ", value, "; pixels are UINT8, 0 to 255"));
    }
    pixels.push_back(static_cast<uint8_t>(value));
  }
  return Buffer::FromVector(std::move(pixels));
}

Status ReadOutputs(const inference::ModelInferRequest& proto, const TeacherModel& model, WireDtype dtype,
                   InferRequest* request) {
  const std::vector<ModelOutput> outputs = OutputsOf(model);
  std::vector<std::string> names;
  for (const ModelOutput& output : outputs) names.push_back(output.name);
  if (proto.outputs_size() > kMaxTaps) {
    return absl::InvalidArgumentError(
        StrCat("the request names ", proto.outputs_size(), " outputs; at most ", kMaxTaps, " are allowed"));
  }
  const auto add = [&](const ModelOutput& output) {
    request->open.taps.push_back({output.tap, static_cast<int>(dtype)});
    request->outputs.push_back(output.name);
  };
  for (const auto& asked : proto.outputs()) {
    DISTILL_RETURN_IF_ERROR(NoParameters(asked.parameters(), StrCat("output ", Quoted(asked.name()))));
    size_t i = 0;
    while (i < outputs.size() && outputs[i].name != asked.name()) ++i;
    if (i == outputs.size()) {
      return absl::InvalidArgumentError(StrCat("model '", model.served.name, "' has no output ", Quoted(asked.name()),
                                               DidYouMean(asked.name().substr(0, kMaxNameBytes), names), "; it has ",
                                               NamesText(names)));
    }
    add(outputs[i]);
  }
  if (proto.outputs_size() > 0) return OkStatus();
  if (model.output_shape.empty()) {
    return absl::InvalidArgumentError(StrCat("model '", model.served.name,
                                             "' returns inner maps only, so the request has to name outputs; it has ",
                                             NamesText(names)));
  }
  add(outputs[0]);
  return OkStatus();
}

}  // namespace

StatusOr<InferRequest> ReadInferRequest(const inference::ModelInferRequest& proto,
                                        const std::vector<ScatteredBuffer>& raw,
                                        const std::vector<TeacherModel>& models) {
  InferRequest request;
  DISTILL_ASSIGN_OR_RETURN(request.model, FindServedModel(models, proto.model_name(), proto.model_version()));
  const TeacherModel& model = models[request.model];
  request.id = proto.id();
  request.open.model = model.served.name;
  WireDtype dtype = WireDtype::kF32;
  DISTILL_RETURN_IF_ERROR(ReadParameters(proto.parameters(), &request.open, &dtype));
  DISTILL_RETURN_IF_ERROR(ReadOutputs(proto, model, dtype, &request));
  if (proto.inputs_size() != 1 || proto.inputs(0).name() != kInputName) {
    std::vector<std::string> names;
    for (int i = 0; i < std::min(proto.inputs_size(), 4); ++i) names.push_back(Quoted(proto.inputs(i).name()));
    return absl::InvalidArgumentError(StrCat("a request has one input, '", kInputName, "'; this one has ",
                                             names.empty() ? "none" : absl::StrJoin(names, ", ")));
  }
  const InputTensor& input = proto.inputs(0);
  DISTILL_RETURN_IF_ERROR(NoParameters(input.parameters(), StrCat("input '", input.name(), "'")));
  if (input.datatype() != "UINT8") {
    return absl::InvalidArgumentError(StrCat("input '", input.name(), "' is of datatype ", Quoted(input.datatype()),
                                             "; send UINT8 pixels, 0 to 255: the server normalises them itself"));
  }
  DISTILL_ASSIGN_OR_RETURN(request.shape, ReadShape(input, model));
  // No overflow: N is small, and C, H, W are the model's own.
  const uint64_t bytes = LayoutOf(request.shape, {.dtype = WireDtype::kU8}).bytes;
  request.typed = raw.empty();
  DISTILL_ASSIGN_OR_RETURN(request.pixels, ReadPixels(input, raw, bytes));
  if (request.typed && dtype != WireDtype::kF32) {
    return absl::InvalidArgumentError(
        "`contents` cannot hold 16-bit outputs; send the pixels in raw_input_contents, or ask for FP32");
  }
  return request;
}

}  // namespace distill
