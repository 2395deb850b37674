#include "coordinator/store/sqlite_database.h"

#include <sqlite3.h>

#include "common/str_cat.h"

namespace distill {

SqliteQuery::SqliteQuery(SqliteDatabase* db, sqlite3_stmt* statement, Status prepared)
    : db_(db), statement_(statement), status_(std::move(prepared)) {}

SqliteQuery::~SqliteQuery() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

SqliteQuery& SqliteQuery::Int(int64_t value) {
  if (status_.ok() && sqlite3_bind_int64(statement_, next_++, value) != SQLITE_OK) {
    status_ = absl::InternalError("bind");
  }
  return *this;
}
SqliteQuery& SqliteQuery::Double(double value) {
  if (status_.ok() && sqlite3_bind_double(statement_, next_++, value) != SQLITE_OK) {
    status_ = absl::InternalError("bind");
  }
  return *this;
}
SqliteQuery& SqliteQuery::Text(std::string_view value) {
  if (status_.ok() && sqlite3_bind_text64(statement_, next_++, value.data() == nullptr ? "" : value.data(),
                                          value.size(), SQLITE_TRANSIENT, SQLITE_UTF8) != SQLITE_OK) {
    status_ = absl::ResourceExhaustedError("a text is too long for the job store");
  }
  return *this;
}
SqliteQuery& SqliteQuery::Blob(std::string_view value) {
  if (status_.ok() && sqlite3_bind_blob64(statement_, next_++, value.data() == nullptr ? "" : value.data(),
                                          value.size(), SQLITE_TRANSIENT) != SQLITE_OK) {
    status_ = absl::ResourceExhaustedError("a value is too long for the job store");
  }
  return *this;
}

StatusOr<bool> SqliteQuery::Step() {
  if (!status_.ok()) return status_;
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return status_ = db_->Error(code, "cannot be read or written");
}

Status SqliteQuery::Run() { return Step().status(); }

int64_t SqliteQuery::IntAt(int column) const { return sqlite3_column_int64(statement_, column); }
double SqliteQuery::DoubleAt(int column) const { return sqlite3_column_double(statement_, column); }
bool SqliteQuery::IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
std::string SqliteQuery::TextAt(int column) const {
  const void* bytes = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return bytes == nullptr ? std::string() : std::string(static_cast<const char*>(bytes), static_cast<size_t>(size));
}

StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path) {
  auto db = std::unique_ptr<SqliteDatabase>(new SqliteDatabase(path));
  const int code = sqlite3_open_v2(path.c_str(), &db->db_,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  if (code != SQLITE_OK) return db->Error(code, "cannot be opened");
  sqlite3_extended_result_codes(db->db_, 1);
  db->SetBusyTimeout(5);
  DISTILL_RETURN_IF_ERROR(db->Execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"));
  SqliteQuery check = db->Query("PRAGMA quick_check(1)");
  DISTILL_ASSIGN_OR_RETURN(const bool row, check.Step());
  if (!row || check.TextAt(0) != "ok") {
    return absl::DataLossError(StrCat("job store ", path, " is damaged (", row ? check.TextAt(0) : "no answer",
                                      "); restore it from a backup, or move it away to start with no jobs"));
  }
  return db;
}

SqliteDatabase::~SqliteDatabase() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close_v2(db_);
}

SqliteQuery SqliteDatabase::Query(const char* sql) {
  auto found = statements_.find(sql);
  if (found != statements_.end()) return SqliteQuery(this, found->second, OkStatus());
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (code != SQLITE_OK) return SqliteQuery(this, nullptr, Error(code, "cannot be queried"));
  statements_[sql] = statement;
  return SqliteQuery(this, statement, OkStatus());
}

void SqliteDatabase::SetBusyTimeout(double seconds) { sqlite3_busy_timeout(db_, static_cast<int>(1000 * seconds)); }

Status SqliteDatabase::Execute(const char* sql) {
  const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? OkStatus() : Error(code, "cannot be read or written");
}

int64_t SqliteDatabase::Changes() const { return sqlite3_changes64(db_); }

Status SqliteDatabase::Error(int code, std::string_view what) const {
  const std::string text =
      StrCat("job store ", path_, " ", what, ": ", db_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(db_));
  switch (code & 0xff) {
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      return absl::DataLossError(StrCat(text, "; restore it from a backup, or move it away to start with no jobs"));
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(StrCat(text, "; free some space"));
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return absl::PermissionDeniedError(StrCat(text, "; the folder must exist and be writable"));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(StrCat(text, "; another process holds it"));
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(text);
    case SQLITE_IOERR:
      return absl::UnavailableError(text);
    default:
      return absl::InternalError(text);
  }
}

SqliteTransaction::~SqliteTransaction() {
  // A failed rollback means that SQLite has rolled back by itself already.
  if (open_) (void)db_->Execute("ROLLBACK");
}

Status SqliteTransaction::Begin() {
  DISTILL_RETURN_IF_ERROR(db_->Execute("BEGIN IMMEDIATE"));
  open_ = true;
  return OkStatus();
}

Status SqliteTransaction::Commit() {
  DISTILL_RETURN_IF_ERROR(db_->Execute("COMMIT"));
  open_ = false;
  return OkStatus();
}

}  // namespace distill
