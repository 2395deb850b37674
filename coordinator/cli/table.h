// Aligned tables for people.
#ifndef DISTILL_COORDINATOR_CLI_TABLE_H_
#define DISTILL_COORDINATOR_CLI_TABLE_H_

#include <string>
#include <vector>

#include "coordinator/cli/text.h"

namespace distill::cli {

// Columns two blanks apart, titles in capitals as given, numbers to the right. Thread-compatible.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // One cell a column, made printable here. Missing cells are empty. REQUIRES: not more cells than columns.
  void AddRow(std::vector<Span> cells);
  bool empty() const { return rows_.empty(); }
  // Title line and rows, each ended by a newline, without blanks at line ends; `indent` blanks before each line.
  std::string Render(const TextOptions& options, int indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<Span>> rows_;
};

inline Table::Column Left(std::string title) { return {std::move(title), Table::Align::kLeft}; }
inline Table::Column Right(std::string title) { return {std::move(title), Table::Align::kRight}; }

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_TABLE_H_
