// safetensors files: reading with full validation, and atomic writing. No torch here.
//
// Format: 8 bytes little-endian header length (at most 100 MB), a JSON object {name: {dtype, shape, data_offsets}} with
// an optional "__metadata__" object of strings, then the tensors' bytes, row-major little-endian, without holes or
// overlap.
// https://github.com/huggingface/safetensors (format section of its README).
//
// Thread-compatible; functions may run on any thread.
#ifndef DISTILL_COMMON_SAFETENSORS_SAFETENSORS_H_
#define DISTILL_COMMON_SAFETENSORS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "common/wire/buffer.h"

namespace distill {

struct SafeTensor {
  std::string dtype;  // "F32", "F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", ...
  std::vector<int64_t> shape;
  Buffer bytes;
};

struct SafetensorsFile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafeTensor> tensors;
};

// Bytes per element, 0 for an unknown dtype.
size_t SafetensorsDtypeSize(const std::string& dtype);

// The bytes of a regular file, copied to memory: a mapping would end the process when the disk fails or somebody cuts
// the file. Never waits for a writer of a pipe. kNotFound: no such file; kPermissionDenied; kInvalidArgument: not a
// regular file; kDataLoss: the disk fails, or the file became shorter meanwhile; kResourceExhausted: no memory for it.
StatusOr<Buffer> ReadRegularFile(const std::string& path);

// Reads a whole file. Buffers are not aligned beyond one byte when the writer did not pad. Errors as ReadRegularFile;
// kDataLoss also: truncated, overlapping, holes, bad JSON, names that are not UTF-8, unknown dtype, shape that does not
// fit its offsets, duplicate keys; the message names file and tensor. Nothing is allocated on the word of a header that
// the file's size does not support.
StatusOr<SafetensorsFile> ReadSafetensors(const std::string& path);
StatusOr<SafetensorsFile> ParseSafetensors(Buffer bytes, const std::string& name_for_messages);

// Writes to `path`.tmp, fsyncs, renames, fsyncs the folder: the old file or the new one, never half of one.
// Tensors are laid out by falling element size, then by name, so that each is aligned. On error `path` is unchanged and
// the temp file removed. kResourceExhausted: no space left, quota or file size limit; kPermissionDenied; kNotFound: no
// such folder; kInvalidArgument: a tensor whose bytes do not fit its shape and dtype, or a name that is not UTF-8;
// names the path.
Status WriteSafetensors(const std::string& path, const SafetensorsFile& file);

// The same atomic write for any bytes, with the same errors.
Status WriteFileAtomically(const std::string& path, std::string_view bytes);

}  // namespace distill

#endif  // DISTILL_COMMON_SAFETENSORS_SAFETENSORS_H_
