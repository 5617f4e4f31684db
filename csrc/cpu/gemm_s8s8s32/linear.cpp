#include "cpu/gemm_s8s8s32/linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/gemm_s8s8s32/columns.h"
#include "cpu/gemm_s8s8s32/part.h"
#include "cpu/pieces.h"
#include "cpu/quantize_rowwise/layout.h"
#include "cpu/scratch.h"

namespace fastinfer::cpu {

namespace {

// Rows of x as a kernel reads them, on from one that begins a block of the layout.
struct Rows {
  float* scale;
  float* offset;
  int8_t* q;

  Rows from(int64_t row, int64_t k_pad) const {
    return {scale + row, offset + row, q + row * k_pad};
  }
  void give(int64_t rows, GemmS8S8S32* gemm) const {
    gemm->m = rows;
    gemm->a = q;
    gemm->a_scale = scale;
    gemm->a_offset = offset;
  }
};

struct LastChunk;

// Work goes to threads by tasks, a grid of equal shares, and between them by pieces: chunks of a
// task's rows, or units of a chunk's panels. With tasks side by side along N every chunk is cut
// into units, otherwise the last one of each task alone.
struct Job {
  const LinearW8A8* p;
  LinearPlan plan;
  int64_t panels;  // of all weights, one after the other; gated: of either
  int64_t rows_per_task, panels_per_task;
  int64_t unit_panels, units_per_chunk;  // of a task
  LastChunk* last_chunks;                // of every task, where they alone are cut, or null
  bool in_place;                         // the rows of x are what the kernel reads
  bool prepare;                          // whether the kernel prepares the rows of a chunk
  bool share_rows;
  Rows shared;  // of all x, if rows are shared
  int64_t rows_per_share;
  GateTile gate;
  int64_t columns_scratch;  // bytes
  Pieces* pieces;
  std::atomic<bool> ok{true};

  // Whether all chunks are cut into units, not a task's last one alone.
  bool cut_all() const { return plan.tasks_n > 1; }
};

// Bytes of the scales and offsets of so many rows.
int64_t scale_bytes(int64_t rows) { return round_up(rows * 8, 64); }

// Memory for the rows of a chunk and what the kernel prepares of them.
struct ChunkMemory {
  Rows rows;
  int8_t* prepared;

  static int64_t row_bytes(const Job& job) {
    if (job.in_place || job.share_rows) return 0;
    return round_up(job.plan.mc * job.p->weights[0].packed.k_pad, 64);
  }
  static int64_t prepared_bytes(const Job& job) {
    if (!job.prepare) return 0;
    const int64_t k_pad = job.p->weights[0].packed.k_pad;
    return round_up(job.plan.gemm->prepare.bytes(job.plan.mc, k_pad), 64);
  }
  static int64_t bytes(const Job& job) {
    return scale_bytes(job.plan.mc) + row_bytes(job) + prepared_bytes(job);
  }
  ChunkMemory(const Job& job, void* memory)
      : rows{static_cast<float*>(memory), static_cast<float*>(memory) + job.plan.mc,
             static_cast<int8_t*>(memory) + scale_bytes(job.plan.mc)},
        prepared(rows.q + row_bytes(job)) {}
};

// What a thread keeps in its scratch: a chunk, what a sparse weight asks for, and the part of a
// gate that waits for its factor.
struct Buffers {
  ChunkMemory chunk;
  int8_t* columns;
  float* gate;

  static int64_t bytes(const Job& job) {
    const int64_t gate = job.p->gated ? job.gate.rows * job.gate.ld * int64_t(sizeof(float)) : 0;
    return ChunkMemory::bytes(job) + job.columns_scratch + gate;
  }
  Buffers(const Job& job, void* memory)
      : chunk(job, memory),
        columns(static_cast<int8_t*>(memory) + ChunkMemory::bytes(job)),
        gate(reinterpret_cast<float*>(columns + job.columns_scratch)) {}
};

// The last chunk of a task, which other threads take units of: they find its rows here once they
// are ready. Until all is done nothing else is put into its memory.
struct alignas(64) LastChunk {
  void* memory = nullptr;  // where there was none to be had each thread makes rows of its own
  GemmS8S8S32 rows{};
  std::atomic<bool> ready{false};
};

// The memory of a task is the same at every call, so that mostly the same core has written it.
std::vector<LastChunk> make_last_chunks(const Job& job, size_t tasks) {
  static thread_local std::deque<Scratch> scratches;
  while (scratches.size() < tasks) scratches.emplace_back();
  std::vector<LastChunk> chunks(tasks);
  for (size_t i = 0; i < tasks; ++i) {
    chunks[i].memory = scratches[i].at_least(size_t(ChunkMemory::bytes(job)));
  }
  return chunks;
}

// The rows of `p`, int8 already, in the layout that `p` asks for.
void lay_out_rows(const QuantizeRowwise& p) {
  const auto store = [&p](const char* x, int64_t bytes, int8_t* to) {
    uint8_t block[kBlockK] = {};
    std::memcpy(block, x, size_t(bytes));
    for (uint8_t& byte : block) byte ^= p.flip;
    std::memcpy(to, block, kBlockK);
  };
  for (int64_t m = 0; m < p.rows; ++m) {
    const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
    const RowDestination row = row_destination(p, m);
    int8_t* to = row.q;
    int64_t k = 0;
    for (; k + kBlockK <= p.k; k += kBlockK, to += row.k_block_stride) store(x + k, kBlockK, to);
    if (k < p.k_store) store(x + k, p.k - k, to);
  }
}

// Rows [m, m + rows) of x as the kernel reads them, in `to` or where they are: gemm.m, a, a_scale,
// a_offset.
void prepare_rows(const Job& job, int64_t m, int64_t rows, const Rows& to, GemmS8S8S32* gemm) {
  const LinearW8A8& p = *job.p;
  QuantizeRowwise chunk{};
  chunk.x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  chunk.x_dtype = p.x_dtype;
  chunk.ldx_bytes = p.ldx_bytes;
  chunk.rows = rows;
  chunk.k = p.weights[0].packed.k;
  chunk.k_store = p.weights[0].packed.k_pad;
  chunk.tile_rows = job.plan.tile_rows;
  chunk.flip = job.plan.flip;
  chunk.q = to.q;
  chunk.scale = to.scale;
  chunk.offset = to.offset;

  to.give(rows, gemm);
  if (p.x_dtype != DType::s8) {
    if (p.x_scale != nullptr) {
      chunk.static_scale = *p.x_scale;
      chunk.static_offset = *p.x_offset;
    }
    return job.plan.quantize->run(chunk);
  }
  if (job.in_place) {
    gemm->a = static_cast<const int8_t*>(chunk.x);
  } else {
    lay_out_rows(chunk);
  }
  if (p.x_scale_step == 1) {
    gemm->a_scale = p.x_scale + m;
    gemm->a_offset = p.x_offset + m;
  } else {
    std::fill_n(to.scale, rows, *p.x_scale);
    std::fill_n(to.offset, rows, *p.x_offset);
  }
}

// A task before those that multiply: some of the rows that they share.
void share_rows(void* context, int64_t share) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t m = share * job.rows_per_share;
  const int64_t rows = std::min(job.rows_per_share, job.p->m - m);
  if (rows <= 0) return;
  GemmS8S8S32 unused{};
  prepare_rows(job, m, rows, job.shared.from(m, job.p->weights[0].packed.k_pad), &unused);
}

// The output and the residual, moved to a row and a column.
void set_output(const Job& job, int64_t row, int64_t column, GemmS8S8S32* gemm) {
  const LinearW8A8& p = *job.p;
  const int64_t column_bytes = column * size_of(p.out_dtype);
  gemm->out = static_cast<char*>(p.out) + row * p.out_ld_bytes + column_bytes;
  gemm->out_ld_bytes = p.out_ld_bytes;
  gemm->out_dtype = p.out_dtype;
  gemm->out_bytes = p.m * p.out_ld_bytes / (job.plan.tasks_m * job.plan.tasks_n);
  if (p.residual == nullptr) return;
  gemm->residual = static_cast<const char*>(p.residual) + row * p.residual_ld_bytes + column_bytes;
  gemm->residual_ld_bytes = p.residual_ld_bytes;
}

// `rows` holds a chunk that begins at row m: its columns in panels [begin, end) of all weights.
void multiply(const Job& job, GemmS8S8S32 rows, int64_t m, int64_t begin, int64_t end,
              int8_t* scratch) {
  const LinearW8A8& p = *job.p;
  rows.activation = p.activation;
  int64_t first_panel = 0, first_column = 0;
  for (int64_t i = 0; i < p.weight_count && first_panel < end; ++i) {
    const LinearWeight& weight = p.weights[i];
    const int64_t n = weight.packed.n;
    const int64_t n_begin = std::max<int64_t>(0, begin - first_panel) * kPanelColumns;
    const int64_t n_end = std::min(n, (end - first_panel) * kPanelColumns);
    if (n_begin < n_end) {
      set_output(job, m, first_column + n_begin, &rows);
      multiply_columns(job.plan, weight, n_begin, n_end, rows, scratch);
    }
    first_panel += ceil_div(n, kPanelColumns);
    first_column += n;
  }
}

// The same for a gate and its factor: a tile of the gate, activated, then the product with it.
void multiply_gated(const Job& job, const GemmS8S8S32& rows, int64_t m, int64_t begin, int64_t end,
                    const Buffers& buffers) {
  const LinearW8A8& p = *job.p;
  const int64_t n_end = std::min(p.weights[0].packed.n, end * kPanelColumns);
  for (int64_t n = begin * kPanelColumns; n < n_end; n += job.gate.columns) {
    const int64_t columns_end = std::min(n_end, n + job.gate.columns);
    for (int64_t r = 0; r < rows.m; r += job.gate.rows) {
      GemmS8S8S32 gate = rows_from(rows, r, std::min(job.gate.rows, rows.m - r));
      GemmS8S8S32 up = gate;

      gate.activation = p.activation;
      gate.out = buffers.gate;
      gate.out_ld_bytes = job.gate.ld * int64_t(sizeof(float));
      gate.out_dtype = DType::f32;
      multiply_columns(job.plan, p.weights[0], n, columns_end, gate, buffers.columns);

      up.multiplier = buffers.gate;
      up.multiplier_ld_bytes = gate.out_ld_bytes;
      set_output(job, m + r, n, &up);
      multiply_columns(job.plan, p.weights[1], n, columns_end, up, buffers.columns);
    }
  }
}

// A piece of a task: panels [begin, end) of the rows of a chunk, [m, m + rows).
struct Piece {
  int64_t m, rows, begin, end;
  int64_t unit;  // of the chunk
  bool of_last;  // of the chunks of the task
};

// Without rows or panels where this task has fewer pieces than others.
Piece piece_at(const Job& job, int64_t task, int64_t index) {
  const int64_t task_m = task / job.plan.tasks_n, task_n = task % job.plan.tasks_n;
  const int64_t m_begin = task_m * job.rows_per_task, mc = job.plan.mc;
  const int64_t m_end = std::min(job.p->m, m_begin + job.rows_per_task);
  const int64_t last = ceil_div(std::max<int64_t>(1, m_end - m_begin), mc) - 1;
  const int64_t chunk = job.cut_all() ? index / job.units_per_chunk : std::min(index, last);
  const int64_t unit = job.cut_all() ? index % job.units_per_chunk : index - chunk;
  const bool cut = job.cut_all() || chunk == last;
  const int64_t task_begin = task_n * job.panels_per_task, m = m_begin + chunk * mc;
  const int64_t task_end = std::min(job.panels, task_begin + job.panels_per_task);
  const int64_t begin = task_begin + unit * job.unit_panels;
  const int64_t end = cut ? std::min(task_end, begin + job.unit_panels) : task_end;
  return {m, std::min(mc, m_end - m), begin, end, unit, chunk == last};
}

// A thread's rows of x, and from where on they are.
struct Chunk {
  int64_t begin = -1;
  GemmS8S8S32 rows;
};

// The rows of a piece as the kernel reads them, put into `memory` if they are not elsewhere.
GemmS8S8S32 rows_of(const Job& job, const Piece& piece, const ChunkMemory& memory) {
  GemmS8S8S32 rows{};
  rows.k_pad = job.p->weights[0].packed.k_pad;
  rows.zen4 = is_zen4();
  if (job.share_rows) {
    job.shared.from(piece.m, rows.k_pad).give(piece.rows, &rows);
  } else {
    prepare_rows(job, piece.m, piece.rows, memory.rows, &rows);
  }
  if (job.prepare) {
    job.plan.gemm->prepare.run(rows.a, rows.m, rows.k_pad, memory.prepared);
    rows.prepared = memory.prepared;
    rows.prepared_rows = rows.m;
  }
  return rows;
}

void run_piece(const Job& job, int64_t task, int64_t index, const Buffers& buffers, Chunk* chunk) {
  const Piece piece = piece_at(job, task, index);
  if (piece.rows <= 0 || piece.begin >= piece.end) return;
  // Whoever takes the first unit of a last chunk makes its rows ready for all.
  LastChunk* last = job.last_chunks != nullptr && piece.of_last ? job.last_chunks + task : nullptr;
  if (last != nullptr && last->memory != nullptr && piece.unit == 0) {
    last->rows = rows_of(job, piece, ChunkMemory(job, last->memory));
    last->ready.store(true, std::memory_order_release);
  }
  const bool ready = last != nullptr && last->ready.load(std::memory_order_acquire);
  if (!ready && piece.m != chunk->begin) {
    chunk->begin = piece.m;
    chunk->rows = rows_of(job, piece, buffers.chunk);
  }
  const GemmS8S8S32& rows = ready ? last->rows : chunk->rows;
  if (job.p->gated) {
    multiply_gated(job, rows, piece.m, piece.begin, piece.end, buffers);
  } else {
    multiply(job, rows, piece.m, piece.begin, piece.end, buffers.columns);
  }
}

// The pieces of a task, then those that are left of others: of all, or with columns between them,
// of those with the same rows, which are quantised already if they are one chunk.
void run_task(void* context, int64_t task) {
  Job& job = *static_cast<Job*>(context);
  static thread_local Scratch scratch;
  void* memory = scratch.at_least(size_t(Buffers::bytes(job)));
  if (memory == nullptr) {
    job.ok = false;
    return;
  }
  const Buffers buffers(job, memory);
  Chunk chunk;
  const int64_t tasks_n = job.plan.tasks_n;
  const int64_t first = tasks_n > 1 ? task / tasks_n * tasks_n : 0;
  const int64_t count = tasks_n > 1 ? tasks_n : job.plan.tasks_m;
  job.pieces->run(task, first, count, [&](int64_t share, int64_t index) {
    run_piece(job, share, index, buffers, &chunk);
  });
}

}  // namespace

bool linear_w8a8(const LinearW8A8& p, int threads, ParallelFor parallel_for) {
  Job job;
  job.p = &p;
  job.panels = 0;
  WeightKinds kinds{0, false, true};
  for (int64_t i = 0; i < p.weight_count; ++i) {
    const PackedWeight& weight = p.weights[i].packed;
    job.panels += panels_of(weight);
    kinds.stored += double(weight.stored_bytes());
    kinds.masked = kinds.masked || is_masked(weight.layout);
    kinds.only_bsr = kinds.only_bsr && weight.layout == WeightLayout::bsr;
  }
  if (p.m == 0 || job.panels == 0) return true;
  const PackedWeight& first = p.weights[0].packed;
  const int64_t columns = job.panels * kPanelColumns;
  kinds.stored /= double(std::max<int64_t>(1, columns * first.k_pad));
  job.plan = plan_linear(p.m, columns, first.k_pad, threads, kinds);
  if (p.gated) job.panels /= 2;
  job.rows_per_task = round_up(ceil_div(p.m, job.plan.tasks_m), kPanelColumns);
  job.panels_per_task = ceil_div(job.panels, job.plan.tasks_n);
  const int64_t tasks = job.plan.tasks_m * job.plan.tasks_n;
  job.unit_panels = tasks > 1 ? unit_panels(job.panels_per_task) : job.panels_per_task;
  job.units_per_chunk = ceil_div(job.panels_per_task, job.unit_panels);
  job.in_place = p.x_dtype == DType::s8 && job.plan.tile_rows == 1 && job.plan.flip == 0 &&
                 first.k == first.k_pad && (p.m == 1 || p.ldx_bytes == first.k);
  job.prepare = job.plan.gemm->prepare.run != nullptr && !kinds.only_bsr;
  job.share_rows = job.plan.share_rows && p.x_dtype != DType::s8;
  if (job.share_rows) {
    static thread_local Scratch scratch;
    char* memory =
        static_cast<char*>(scratch.at_least(size_t(scale_bytes(p.m) + p.m * first.k_pad)));
    if (memory == nullptr) return false;
    float* scale = reinterpret_cast<float*>(memory);
    job.shared = {scale, scale + p.m, reinterpret_cast<int8_t*>(memory + scale_bytes(p.m))};
    job.rows_per_share = round_up(ceil_div(p.m, threads), kPanelColumns);
    parallel_for(threads, share_rows, &job);
  }
  job.gate = gate_tile(std::min(p.m, job.plan.mc));
  job.columns_scratch = 0;
  for (int64_t i = 0; i < p.weight_count; ++i) {
    job.columns_scratch =
        std::max(job.columns_scratch,
                 columns_scratch_bytes(job.plan, p.weights[i].packed, std::min(p.m, job.plan.mc)));
  }
  std::vector<LastChunk> last_chunks;
  job.last_chunks = nullptr;
  if (!job.cut_all() && job.units_per_chunk > 1 && !job.share_rows) {
    last_chunks = make_last_chunks(job, size_t(tasks));
    job.last_chunks = last_chunks.data();
  }
  const int64_t chunks = ceil_div(job.rows_per_task, job.plan.mc);
  Pieces pieces(tasks,
                job.cut_all() ? chunks * job.units_per_chunk : chunks - 1 + job.units_per_chunk);
  job.pieces = &pieces;
  if (tasks == 1) {
    run_task(&job, 0);
  } else {
    parallel_for(tasks, run_task, &job);
  }
  return job.ok;
}

}  // namespace fastinfer::cpu
