// Tables of the SQLite job store. The version stands in the file's user_version.
#ifndef DISTILL_COORDINATOR_STORE_SQLITE_SCHEMA_H_
#define DISTILL_COORDINATOR_STORE_SQLITE_SCHEMA_H_

#include <cstdint>
#include <string>

#include "coordinator/store/sqlite_database.h"

namespace distill {

inline constexpr int kSchemaVersion = 3;

// Makes the tables in an empty file, refuses other versions (kFailedPrecondition), raises the coordinator epoch by one
// and returns it.
StatusOr<uint64_t> PrepareSchema(SqliteDatabase* db, const std::string& path);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_SQLITE_SCHEMA_H_
