// A thin, Status-speaking face of one SQLite connection: prepared statements, transactions, errors in words.
//
// Thread-compatible: the caller serialises. Only sqlite_database.cc includes sqlite3.h.
#ifndef DISTILL_COORDINATOR_STORE_SQLITE_DATABASE_H_
#define DISTILL_COORDINATOR_STORE_SQLITE_DATABASE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "common/status.h"

struct sqlite3;
struct sqlite3_stmt;

namespace distill {

class SqliteDatabase;

// One use of a prepared statement; resets it at the end of its life. Parameters and columns count from 1 and 0, as in
// SQLite.
class SqliteQuery {
 public:
  SqliteQuery(SqliteDatabase* db, sqlite3_stmt* statement, Status prepared);
  ~SqliteQuery();
  SqliteQuery(const SqliteQuery&) = delete;
  SqliteQuery& operator=(const SqliteQuery&) = delete;

  // Binds the next parameter. Texts must not contain NUL; blobs may.
  SqliteQuery& Int(int64_t value);
  SqliteQuery& Double(double value);
  SqliteQuery& Text(std::string_view value);
  SqliteQuery& Blob(std::string_view value);

  // True when a row is there; false at the end.
  StatusOr<bool> Step();
  // Steps once, expecting no row.
  Status Run();

  int64_t IntAt(int column) const;
  double DoubleAt(int column) const;
  std::string TextAt(int column) const;  // also blobs; NULL gives ""
  bool IsNull(int column) const;

 private:
  SqliteDatabase* const db_;       // not owned; outlives its queries
  sqlite3_stmt* const statement_;  // owned by the database's cache
  Status status_;
  int next_ = 1;
};

class SqliteDatabase {
 public:
  // Opens or makes the file; sets WAL, synchronous=FULL, foreign keys and a busy timeout of 5 s, and checks the file
  // (quick_check).
  static StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path);
  ~SqliteDatabase();

  // `sql` must be a literal: statements are prepared once and kept. One query per statement at a time.
  SqliteQuery Query(const char* sql);
  // How long a statement waits for a lock that another process holds.
  void SetBusyTimeout(double seconds);
  // Several statements without parameters.
  Status Execute(const char* sql);
  // Rows changed by the last statement.
  int64_t Changes() const;
  // The last failure `code` as a Status that names the file.
  Status Error(int code, std::string_view what) const;

 private:
  explicit SqliteDatabase(std::string path) : path_(std::move(path)) {}
  const std::string path_;
  sqlite3* db_ = nullptr;
  std::map<std::string_view, sqlite3_stmt*> statements_;
};

// BEGIN IMMEDIATE; rolls back unless committed. One at a time.
class SqliteTransaction {
 public:
  explicit SqliteTransaction(SqliteDatabase* db) : db_(db) {}
  ~SqliteTransaction();
  Status Begin();
  Status Commit();

 private:
  SqliteDatabase* const db_;  // not owned
  bool open_ = false;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_SQLITE_DATABASE_H_
