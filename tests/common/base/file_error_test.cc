#include "common/file_error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace distill {
namespace {

TEST(FileErrorTest, SaysWhatWasTriedWhereWhyAndWhatHelps) {
  EXPECT_EQ(FileError(ENOSPC, "write", "/work/a").message(),
            "cannot write '/work/a': No space left on device; free space there, or choose another folder");
  EXPECT_EQ(FileError(EACCES, "make the folder", "/w", "another --work-dir").message(),
            "cannot make the folder '/w': Permission denied; permit it there, or choose another --work-dir");
  EXPECT_EQ(FileError(ENOTDIR, "make the folder", "/f/w", "another --work-dir").message(),
            "cannot make the folder '/f/w': Not a directory; choose another --work-dir");
}

TEST(FileErrorTest, TheCodeSaysWhetherItMayPass) {
  EXPECT_EQ(FileError(ENOENT, "open", "a").code(), StatusCode::kNotFound);
  for (int error : {ENOTDIR, EISDIR, EEXIST}) {
    EXPECT_EQ(FileError(error, "open", "a").code(), StatusCode::kNotFound) << error;
  }
  for (int error : {EACCES, EPERM, EROFS}) {
    EXPECT_EQ(FileError(error, "open", "a").code(), StatusCode::kPermissionDenied) << error;
  }
  for (int error : {ENOSPC, EDQUOT, EFBIG}) {
    EXPECT_EQ(FileError(error, "write", "a").code(), StatusCode::kResourceExhausted) << error;
  }
  EXPECT_EQ(FileError(EIO, "read", "a").code(), StatusCode::kDataLoss);
  for (int error : {EMFILE, EAGAIN, ESTALE}) {
    EXPECT_EQ(FileError(error, "open", "a").code(), StatusCode::kUnavailable) << error;
  }
}

}  // namespace
}  // namespace distill
