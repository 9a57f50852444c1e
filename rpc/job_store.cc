#include "rpc/job_store.h"

#include <sqlite3.h>

#include <cstring>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace metattn {
namespace {

constexpr char kSchema[] = R"sql(
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY,
  idempotency_key TEXT UNIQUE,
  request BLOB NOT NULL,
  status INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  seed INTEGER NOT NULL,
  finish BLOB NOT NULL,
  error TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  ended_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs(status, priority, created_us);
CREATE TABLE IF NOT EXISTS output (
  job TEXT NOT NULL,
  start INTEGER NOT NULL,
  stop INTEGER NOT NULL,
  serial INTEGER NOT NULL,
  tokens BLOB NOT NULL,
  text TEXT NOT NULL,
  PRIMARY KEY (job, serial)
) WITHOUT ROWID;
)sql";
constexpr int kSchemaVersion = 1;
constexpr char kJobColumns[] =
    "id, idempotency_key, request, status, priority, attempts, seed, finish, error, created_us, "
    "ended_us";

// A prepared statement for one use.
class Statement {
 public:
  Statement(sqlite3* db, const std::string& sql) : db_(db) {
    ok_ = sqlite3_prepare_v2(db, sql.c_str(), -1, &stmt_, nullptr) == SQLITE_OK;
  }
  ~Statement() { sqlite3_finalize(stmt_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Text(const std::string& v) {
    if (ok_)
      sqlite3_bind_text(stmt_, ++next_, v.data(), static_cast<int>(v.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& TextOrNull(const std::string& v) {
    if (!v.empty()) return Text(v);
    ++next_;  // unbound: NULL
    return *this;
  }
  Statement& Blob(const void* data, std::size_t bytes) {
    ++next_;
    if (ok_ && bytes == 0) sqlite3_bind_zeroblob(stmt_, next_, 0);
    if (ok_ && bytes > 0) {
      sqlite3_bind_blob(stmt_, next_, data, static_cast<int>(bytes), SQLITE_TRANSIENT);
    }
    return *this;
  }
  Statement& Blob(const std::string& v) { return Blob(v.data(), v.size()); }
  Statement& Int(std::int64_t v) {
    if (ok_) sqlite3_bind_int64(stmt_, ++next_, v);
    return *this;
  }
  int Step() { return ok_ ? sqlite3_step(stmt_) : sqlite3_errcode(db_); }

  std::string Bytes(int column) const {
    const void* data = sqlite3_column_blob(stmt_, column);
    const int bytes = sqlite3_column_bytes(stmt_, column);
    return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), bytes);
  }
  std::int64_t Int64(int column) const { return sqlite3_column_int64(stmt_, column); }

 private:
  sqlite3* db_;
  sqlite3_stmt* stmt_ = nullptr;
  bool ok_ = false;
  int next_ = 0;
};

StoredJob RowToJob(const Statement& row) {
  StoredJob job;
  job.id = row.Bytes(0);
  job.idempotency_key = row.Bytes(1);
  job.request = row.Bytes(2);
  job.status = static_cast<JobStatus>(row.Int64(3));
  job.priority = static_cast<std::int32_t>(row.Int64(4));
  job.attempts = static_cast<std::int32_t>(row.Int64(5));
  job.seed = static_cast<std::uint64_t>(row.Int64(6));
  job.finish = row.Bytes(7);
  job.error = row.Bytes(8);
  job.created_us = row.Int64(9);
  job.ended_us = row.Int64(10);
  return job;
}

class SqliteJobStore final : public JobStore {
 public:
  SqliteJobStore(sqlite3* db, std::string path) : db_(db), path_(std::move(path)) {}
  ~SqliteJobStore() override { sqlite3_close(db_); }

  absl::Status Initialise() {
    for (const char* sql : {"PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL",
                            "PRAGMA synchronous=FULL", "BEGIN IMMEDIATE"}) {
      if (auto s = Exec(sql); !s.ok()) return s;
    }
    std::int64_t found = 0;
    {
      Statement version(db_, "PRAGMA user_version");
      if (version.Step() != SQLITE_ROW) return Error("reading the schema version");
      found = version.Int64(0);
    }
    if (found != 0 && found != kSchemaVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat(path_, ": job store of schema version ", found, ", this program reads ",
                       kSchemaVersion, "; choose another file with --jobs-db"));
    }
    if (auto s = Exec(kSchema); !s.ok()) return s;
    if (auto s = Exec(absl::StrCat("PRAGMA user_version=", kSchemaVersion)); !s.ok()) return s;
    return Exec("COMMIT");
  }

  absl::Status Insert(const StoredJob& job) override {
    std::lock_guard lock(mutex_);
    Statement insert(
        db_, absl::StrCat("INSERT INTO jobs (", kJobColumns, ") VALUES (?,?,?,?,?,?,?,?,?,?,?)"));
    insert.Text(job.id).TextOrNull(job.idempotency_key).Blob(job.request);
    insert.Int(static_cast<int>(job.status)).Int(job.priority).Int(job.attempts);
    insert.Int(static_cast<std::int64_t>(job.seed)).Blob(job.finish).Text(job.error);
    const int rc = insert.Int(job.created_us).Int(job.ended_us).Step();
    if (rc == SQLITE_DONE) return absl::OkStatus();
    if ((rc & 0xff) == SQLITE_CONSTRAINT) {
      return absl::AlreadyExistsError("a job with this id or idempotency_key exists");
    }
    return Error("storing a job");
  }

  absl::StatusOr<StoredJob> Get(const std::string& id) const override {
    std::lock_guard lock(mutex_);
    Statement get(db_, absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE id=?"));
    const int rc = get.Text(id).Step();
    if (rc == SQLITE_ROW) return RowToJob(get);
    if (rc == SQLITE_DONE)
      return absl::NotFoundError(absl::StrCat("id: there is no job '", id, "'"));
    return Error("reading a job");
  }

  absl::StatusOr<std::optional<StoredJob>> FindByKey(const std::string& key) const override {
    std::lock_guard lock(mutex_);
    Statement get(db_, absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE idempotency_key=?"));
    const int rc = get.Text(key).Step();
    if (rc == SQLITE_ROW) return std::optional<StoredJob>(RowToJob(get));
    if (rc == SQLITE_DONE) return std::optional<StoredJob>();
    return Error("looking up an idempotency key");
  }

  absl::StatusOr<std::vector<StoredJob>> Unfinished() const override {
    std::lock_guard lock(mutex_);
    Statement list(db_, absl::StrCat("SELECT ", kJobColumns,
                                     " FROM jobs WHERE status IN (?,?) "
                                     "ORDER BY priority, created_us, id"));
    list.Int(static_cast<int>(JobStatus::kQueued)).Int(static_cast<int>(JobStatus::kRunning));
    std::vector<StoredJob> jobs;
    int rc;
    while ((rc = list.Step()) == SQLITE_ROW) jobs.push_back(RowToJob(list));
    if (rc != SQLITE_DONE) return Error("listing jobs");
    return jobs;
  }

  absl::Status SetStatus(const std::string& id, JobStatus status, int attempts) override {
    std::lock_guard lock(mutex_);
    Statement update(db_, "UPDATE jobs SET status=?, attempts=? WHERE id=?");
    if (update.Int(static_cast<int>(status)).Int(attempts).Text(id).Step() != SQLITE_DONE) {
      return Error("updating a job");
    }
    return absl::OkStatus();
  }

  absl::Status Append(std::span<const JobOutput> outputs,
                      std::span<const StoredJob> ended) override {
    std::lock_guard lock(mutex_);
    return Transaction([&]() -> absl::Status {
      for (const JobOutput& output : outputs) {
        if (auto s = AddChunk(output.job, output.chunk); !s.ok()) return s;
      }
      for (const StoredJob& job : ended) {
        Statement end(db_, "UPDATE jobs SET status=?, finish=?, error=?, ended_us=? WHERE id=?");
        end.Int(static_cast<int>(job.status)).Blob(job.finish).Text(job.error);
        if (end.Int(job.ended_us).Text(job.id).Step() != SQLITE_DONE) return Error("ending a job");
      }
      return absl::OkStatus();
    });
  }

  absl::Status ReplaceOutput(const std::string& id, std::span<const OutputChunk> chunks) override {
    std::lock_guard lock(mutex_);
    return Transaction([&]() -> absl::Status {
      Statement clear(db_, "DELETE FROM output WHERE job=?");
      if (clear.Text(id).Step() != SQLITE_DONE) return Error("replacing a job's output");
      for (const OutputChunk& chunk : chunks) {
        if (auto s = AddChunk(id, chunk); !s.ok()) return s;
      }
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::vector<OutputChunk>> Read(const std::string& id, std::int64_t offset,
                                                std::int64_t after, int limit) const override {
    std::lock_guard lock(mutex_);
    // A chunk without tokens (text that was held back) counts as lying at its start.
    Statement read(db_,
                   "SELECT start, tokens, text, serial FROM output WHERE job=? AND serial > ? AND "
                   "(stop > ? OR (stop = start AND start >= ?)) ORDER BY serial LIMIT ?");
    read.Text(id).Int(after).Int(offset).Int(offset).Int(limit);
    std::vector<OutputChunk> chunks;
    int rc;
    while ((rc = read.Step()) == SQLITE_ROW) {
      OutputChunk chunk;
      chunk.offset = read.Int64(0);
      const std::string bytes = read.Bytes(1);
      chunk.tokens.resize(bytes.size() / sizeof(std::int32_t));
      std::memcpy(chunk.tokens.data(), bytes.data(), chunk.tokens.size() * sizeof(std::int32_t));
      chunk.text = read.Bytes(2);
      chunk.serial = read.Int64(3);
      chunks.push_back(std::move(chunk));
    }
    if (rc != SQLITE_DONE) return Error("reading a job's output");
    return chunks;
  }

 private:
  template <typename Body>
  absl::Status Transaction(Body&& body) {
    if (auto s = Exec("BEGIN IMMEDIATE"); !s.ok()) return s;
    absl::Status status = body();
    if (status.ok()) status = Exec("COMMIT");
    if (!status.ok()) sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
    return status;
  }

  absl::Status AddChunk(const std::string& job, const OutputChunk& chunk) {
    Statement add(db_,
                  "INSERT INTO output (job, start, stop, serial, tokens, text) VALUES (?1,?2,?3,"
                  "(SELECT COALESCE(MAX(serial),-1)+1 FROM output WHERE job=?1),?4,?5)");
    add.Text(job).Int(chunk.offset);
    add.Int(chunk.offset + static_cast<std::int64_t>(chunk.tokens.size()));
    add.Blob(chunk.tokens.data(), chunk.tokens.size() * sizeof(std::int32_t)).Text(chunk.text);
    return add.Step() == SQLITE_DONE ? absl::OkStatus() : Error("storing output");
  }

  absl::Status Exec(const std::string& sql) {
    const int rc = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
    return rc == SQLITE_OK ? absl::OkStatus() : Error("opening or committing");
  }

  absl::Status Error(const char* doing) const {
    const int code = sqlite3_errcode(db_);
    const std::string text = absl::StrCat(path_, ": ", doing, ": ", sqlite3_errmsg(db_));
    if (code == SQLITE_BUSY || code == SQLITE_LOCKED) {
      return absl::FailedPreconditionError(absl::StrCat(
          text, "; another server uses this job store, choose another file with --jobs-db"));
    }
    if (code == SQLITE_FULL) return absl::ResourceExhaustedError(text);
    return absl::InternalError(text);
  }

  sqlite3* const db_;
  const std::string path_;
  mutable std::mutex mutex_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (path != ":memory:" && !folder.empty()) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat(
          folder.string(), ": cannot create the folder of --jobs-db: ", error.message()));
    }
  }
  sqlite3* db = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(path.c_str(), &db, flags, nullptr) != SQLITE_OK) {
    const std::string why = db == nullptr ? "no memory" : sqlite3_errmsg(db);
    sqlite3_close(db);
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": cannot open the job store (--jobs-db): ", why));
  }
  auto store = std::make_unique<SqliteJobStore>(db, path);
  if (auto s = store->Initialise(); !s.ok()) return s;
  return store;
}

}  // namespace metattn
