// What holds for the SQLite file in particular: restarts, two coordinators, damage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "coordinator/store/job_store.h"
#include "coordinator/store/sqlite_database.h"
#include "tests/coordinator/store/store_fixture.h"

namespace distill {
namespace {

using testing::HasSubstr;

TEST(SqliteJobStoreTest, SurvivesReopeningAndCountsEpochs) {
  TempDir dir;
  const std::string path = dir.File("jobs.db");
  {
    auto store = OpenSqliteJobStore(path).value();
    EXPECT_EQ(store->epoch(), 1u);
    ASSERT_TRUE(store->Insert(MakeJob("job"), "r", "s", {MakeEvent("submitted")}).ok());
  }
  auto store = OpenSqliteJobStore(path).value();
  EXPECT_EQ(store->epoch(), 2u);
  EXPECT_EQ(store->Get("job")->plan, MakeJob("job").plan);
  EXPECT_EQ(store->Events("job", 0, 10)->size(), 1u);
}

TEST(SqliteJobStoreTest, ANewerCoordinatorFencesTheOlderOne) {
  TempDir dir;
  auto older = OpenSqliteJobStore(dir.File("jobs.db")).value();
  ASSERT_TRUE(older->Insert(MakeJob("job"), "r", "s", {}).ok());
  EXPECT_TRUE(older->CheckOwnership().ok());
  auto newer = OpenSqliteJobStore(dir.File("jobs.db")).value();
  EXPECT_EQ(older->CheckOwnership().code(), StatusCode::kAborted);
  EXPECT_TRUE(newer->CheckOwnership().ok());
  const Status applied = older->Apply({EventsOf("job", {MakeEvent("from the past")})});
  EXPECT_EQ(applied.code(), StatusCode::kAborted) << applied;
  EXPECT_THAT(std::string(applied.message()),
              HasSubstr("another coordinator took the job store over (epoch 2, this one is of epoch 1)"));
  EXPECT_EQ(older->Insert(MakeJob("job-2"), "r2", "s", {}).code(), StatusCode::kAborted);
  EXPECT_TRUE(newer->Apply({EventsOf("job", {MakeEvent("present")})}).ok());
  EXPECT_EQ(newer->Events("job", 0, 10)->size(), 1u);
}

TEST(SqliteJobStoreTest, RefusesADamagedFile) {
  TempDir dir;
  std::ofstream(dir.File("garbage.db")) << std::string(8192, 'x');
  Status status = OpenSqliteJobStore(dir.File("garbage.db")).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("garbage.db"));

  const std::string path = dir.File("jobs.db");
  {
    auto store = OpenSqliteJobStore(path).value();
    for (int i = 0; i < 50; ++i) {
      ASSERT_TRUE(store
                      ->Insert(MakeJob("job-" + std::to_string(i)), "r" + std::to_string(i), "s",
                               {MakeEvent(std::string(500, 'e'))})
                      .ok());
    }
  }
  const auto size = std::filesystem::file_size(path);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096);
    file << std::string(static_cast<size_t>(size) - 4096, '\x5a');
  }
  status = OpenSqliteJobStore(path).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("restore it from a backup"));
}

TEST(SqliteJobStoreTest, RefusesNewerOlderAndForeignFiles) {
  TempDir dir;
  { auto store = OpenSqliteJobStore(dir.File("jobs.db")).value(); }
  { ASSERT_TRUE(SqliteDatabase::Open(dir.File("jobs.db")).value()->Execute("PRAGMA user_version = 4").ok()); }
  Status status = OpenSqliteJobStore(dir.File("jobs.db")).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema version 4, this program knows 3"));
  { ASSERT_TRUE(SqliteDatabase::Open(dir.File("jobs.db")).value()->Execute("PRAGMA user_version = 1").ok()); }
  status = OpenSqliteJobStore(dir.File("jobs.db")).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema version 1 of an older release"));
  { ASSERT_TRUE(SqliteDatabase::Open(dir.File("other.db")).value()->Execute("CREATE TABLE t (a)").ok()); }
  status = OpenSqliteJobStore(dir.File("other.db")).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another program"));
}

TEST(SqliteJobStoreTest, NamesAFolderThatCannotBeUsed) {
  TempDir dir;
  const Status status = OpenSqliteJobStore(dir.File("missing/jobs.db")).status();
  EXPECT_EQ(status.code(), StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("missing/jobs.db"));
  EXPECT_EQ(OpenSqliteJobStore(dir.path()).status().code(), StatusCode::kPermissionDenied);
}

TEST(SqliteJobStoreTest, AFullDiskIsNamedAndNothingHalfIsKept) {
  TempDir dir;
  auto db = SqliteDatabase::Open(dir.File("full.db")).value();
  ASSERT_TRUE(db->Execute("CREATE TABLE t (a BLOB); PRAGMA max_page_count = 10;").ok());
  SqliteTransaction transaction(db.get());
  ASSERT_TRUE(transaction.Begin().ok());
  const Status status = db->Query("INSERT INTO t VALUES (?)").Blob(std::string(1 << 20, 'x')).Run();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("full.db"));
}

}  // namespace
}  // namespace distill
