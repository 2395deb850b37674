#include "coordinator/cli/table.h"

#include <algorithm>

namespace distill::cli {

void Table::AddRow(std::vector<Span> cells) {
  for (Span& cell : cells) cell.text = Printable(cell.text);
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::Render(const TextOptions& options, int indent) const {
  std::vector<int> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    int width = DisplayWidth(columns_[c].title);
    for (const auto& row : rows_) width = std::max(width, DisplayWidth(row[c].text));
    widths.push_back(width);
  }
  std::string out;
  const auto add_line = [&](const auto& cell_of) {
    std::string line(indent, ' ');
    size_t end = line.size();  // of the last cell that is not empty
    for (size_t c = 0; c < columns_.size(); ++c) {
      const Span cell = cell_of(c);
      const std::string fill(widths[c] - DisplayWidth(cell.text), ' ');
      if (c > 0) line += "  ";
      if (columns_[c].align == Align::kRight) line += fill;
      line += Paint(cell.text, cell.style, options.color);
      if (!cell.text.empty()) end = line.size();
      if (columns_[c].align == Align::kLeft) line += fill;
    }
    line.resize(end);
    out += line + '\n';
  };
  add_line([&](size_t c) { return Span{columns_[c].title, Style::kBold}; });
  for (const auto& row : rows_) add_line([&](size_t c) { return row[c]; });
  return out;
}

}  // namespace distill::cli
