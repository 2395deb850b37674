// What a file that was given as a model really is, told by its bytes and never by its name. No torch here.
//
// People hand over what they have: a pickle under the name of an archive, a pointer that Git LFS left behind, the error
// page of a download. Parsers answer that with their own trouble ("failed locating file constants.pkl"); here the file
// is called what it is, and the way out is named. Nothing is unpacked, and no pickle is ever read.
// Stateless; any thread.
#ifndef DISTILL_COMMON_ZOO_FILE_KIND_H_
#define DISTILL_COMMON_ZOO_FILE_KIND_H_

#include <string>
#include <string_view>

#include "common/status.h"

namespace distill {

enum class FileKind {
  kUnknown,      // none of those below
  kEmpty,        // 0 bytes
  kSafetensors,  // begins as one; it may still be damaged
  kTorchScript,  // a ZIP with constants.pkl: torch.jit.save
  kTorchSave,    // a ZIP with data.pkl: torch.save of a state_dict, a checkpoint or a whole module
  kTorchExport,  // a ZIP of torch.export.save or AOTInductor (.pt2)
  kZip,          // another ZIP
  kZipCutOff,    // begins as a ZIP, has no directory at its end
  kPickle,       // a bare pickle: torch.save before PyTorch 1.6, pickle.dump
  kOnnx,         // as far as its first fields tell
  kHdf5,         // Keras
  kNumpy,        // .npy
  kGzip,
  kTar,
  kLfsPointer,  // the text that stands for a file of Git LFS
  kHtml,        // as a download that was refused leaves it
};

// `head`: at least the first 512 bytes, `tail`: the last bytes, at most 1 MiB are looked at (a ZIP's directory stands
// there); each is the whole file when that is shorter.
FileKind KindOfBytes(std::string_view head, std::string_view tail);

// What a model file was expected to hold.
enum class ModelFormat { kWeights, kArchive };  // safetensors, TorchScript

// OK for the expected kind and for kUnknown, which only the parser can judge. Otherwise what the file is, and the
// remedy (without the path: Annotate() it): kDataLoss when it is empty or cut off, else kFailedPrecondition.
Status CheckKind(FileKind kind, ModelFormat expected);

// CheckKind of a file, with its path in the message. kNotFound, kPermissionDenied: it cannot be opened;
// kInvalidArgument: it is no regular file.
Status CheckModelFile(const std::string& path, ModelFormat expected);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_FILE_KIND_H_
