#include "custom_ops/row_store/row_index.h"

#include <fcntl.h>

#include <new>

namespace tfrec {
namespace {

StoreFile OpenScratch(const std::string& folder) {
  try {
    StoreFile file(folder, O_RDWR | O_TMPFILE | O_EXCL);
    if (file.KeepsSpace()) return file;
  } catch (const StoreError&) {
  }
  return {};
}

}  // namespace

RowIndex::RowIndex(const std::string& folder) : folder_(folder), file_(OpenScratch(folder)) {}
RowIndex::~RowIndex() { Unmap(); }

void RowIndex::AddChunk(int64_t n) {
  void* chunk = file_.IsOpen() ? file_.TakeAndMap(n * kChunkBytes, kChunkBytes) : nullptr;
  if (!chunk) chunk = MapMemory(kChunkBytes);
  if (!chunk) throw std::bad_alloc();
  chunks_[n].chunk.store(static_cast<uint32_t*>(chunk), std::memory_order_release);
}

void RowIndex::Unmap() {
  for (Slot& slot : chunks_) {
    if (uint32_t* chunk = slot.chunk.exchange(nullptr)) tfrec::Unmap(chunk, kChunkBytes);
  }
}

// With another file, which is sure to be of zeros.
void RowIndex::Clear() {
  Unmap();
  file_ = OpenScratch(folder_);
}

}  // namespace tfrec
