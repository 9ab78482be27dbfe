"""The database's schema as migrations: each runs once, in order, and none is ever changed afterwards."""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);

    CREATE TABLE documents (
        id TEXT PRIMARY KEY,                 -- from the sha256 of the bytes, see rag/documents.py
        name TEXT NOT NULL,                  -- display text only, never a path
        kind TEXT NOT NULL,                  -- markdown, html, pdf, docx, csv, text
        bytes INTEGER NOT NULL,
        origin TEXT NOT NULL,                -- sample, upload, folder
        status TEXT NOT NULL CHECK (status IN ('pending', 'ready', 'failed')),
        error TEXT NOT NULL DEFAULT '',
        text TEXT NOT NULL DEFAULT '',       -- extracted text; chunk and citation offsets point into it
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
        ordinal INTEGER NOT NULL,
        heading TEXT NOT NULL,
        page INTEGER,
        start INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        text TEXT NOT NULL,
        vector BLOB NOT NULL                 -- float32, little endian, unit length
    );
    CREATE INDEX chunks_document ON chunks(document_id, ordinal);
    CREATE VIRTUAL TABLE chunks_fts USING fts5(heading, text, tokenize = 'porter unicode61');

    CREATE TABLE conversations (
        id TEXT PRIMARY KEY, user_id TEXT NOT NULL, title TEXT NOT NULL, created_at INTEGER NOT NULL
    );
    CREATE TABLE exchanges (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations(id),
        user_id TEXT NOT NULL,
        question TEXT NOT NULL,
        answer TEXT NOT NULL,                -- as shown
        raw TEXT NOT NULL,                   -- as generated
        mode TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('complete', 'interrupted', 'failed')),
        messages TEXT NOT NULL,              -- JSON, exactly as sent to the model
        passages TEXT NOT NULL,              -- JSON, with scores
        citations TEXT NOT NULL,             -- JSON
        model TEXT NOT NULL,
        adapter_id TEXT,
        prompt_version TEXT NOT NULL,
        supported INTEGER NOT NULL,
        finish_reason TEXT NOT NULL,
        sampling TEXT NOT NULL,              -- JSON
        timings TEXT NOT NULL,               -- JSON
        created_at INTEGER NOT NULL
    );
    CREATE INDEX exchanges_conversation ON exchanges(conversation_id, seq);
    CREATE TABLE votes (
        exchange_id TEXT NOT NULL REFERENCES exchanges(id),
        user_id TEXT NOT NULL,
        value INTEGER NOT NULL CHECK (value IN (-1, 1)),
        reason TEXT NOT NULL DEFAULT '',
        comment TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL,
        PRIMARY KEY (exchange_id, user_id)
    );
    CREATE TABLE corrections (
        id TEXT PRIMARY KEY,
        exchange_id TEXT NOT NULL REFERENCES exchanges(id),
        user_id TEXT NOT NULL,
        question_key TEXT NOT NULL,          -- normalised question, for the instant lookup
        text TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'rejected')),
        reviewer TEXT,
        reviewed_at INTEGER,
        created_at INTEGER NOT NULL,
        UNIQUE (exchange_id, user_id)
    );
    CREATE INDEX corrections_key ON corrections(question_key, status);

    CREATE TABLE datasets (
        version TEXT PRIMARY KEY,            -- first 16 hex digits of the content hash
        card TEXT NOT NULL,                  -- JSON, the same as the card on disk
        created_at INTEGER NOT NULL
    );
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL CHECK (status IN ('running', 'promoted', 'refused', 'failed', 'cancelled')),
        stage TEXT NOT NULL,
        options TEXT NOT NULL,               -- JSON
        dataset_version TEXT,
        adapter_id TEXT,
        report TEXT NOT NULL DEFAULT '{}',   -- JSON: metrics before and after, gate verdict
        error TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE TABLE adapters (
        id TEXT PRIMARY KEY,
        base TEXT NOT NULL,                  -- catalog id
        base_sha256 TEXT NOT NULL,           -- of the base GGUF it was made for
        sha256 TEXT NOT NULL,                -- of adapter.gguf
        run_id TEXT,
        dataset_version TEXT,
        parent_id TEXT,
        method TEXT NOT NULL,
        verdict TEXT NOT NULL CHECK (verdict IN ('passed', 'refused', 'unjudged')),
        metrics TEXT NOT NULL,               -- JSON
        created_at INTEGER NOT NULL
    );
    CREATE TABLE promotions (                -- append-only: the last row per base names who is on stage
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        base TEXT NOT NULL,
        adapter_id TEXT,                     -- NULL: the bare base model
        action TEXT NOT NULL CHECK (action IN ('promote', 'rollback')),
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        created_at INTEGER NOT NULL
    );
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,               -- JSON
        status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'done', 'failed', 'cancelled')),
        progress REAL NOT NULL DEFAULT 0,
        message TEXT NOT NULL DEFAULT '',
        result TEXT NOT NULL DEFAULT '{}',
        attempts INTEGER NOT NULL DEFAULT 0,
        token INTEGER NOT NULL DEFAULT 0,    -- fencing: grows with every lease
        lease_until INTEGER NOT NULL DEFAULT 0,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE INDEX jobs_status ON jobs(status, created_at);
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        actor TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL, created_at INTEGER NOT NULL
    );
    """,
    """
    ALTER TABLE documents ADD COLUMN quality TEXT NOT NULL DEFAULT '{}';   -- JSON: counts of rag.quality
    ALTER TABLE documents ADD COLUMN text_hash TEXT NOT NULL DEFAULT '';   -- alike where the text is
    CREATE INDEX documents_text_hash ON documents(text_hash);
    CREATE TABLE sources (                   -- what a synchronised folder held when it was last looked at
        root TEXT NOT NULL,                  -- the folder, absolute
        path TEXT NOT NULL,                  -- the file below it
        bytes INTEGER NOT NULL,
        modified_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        hash TEXT NOT NULL,                  -- sha256 of the bytes; '' when they could not be read
        documents TEXT NOT NULL,             -- JSON: ids; a ZIP archive has several
        error TEXT NOT NULL DEFAULT '',      -- why the file was refused
        reader TEXT NOT NULL,                -- what read it: a refusal is tried again by another reader
        PRIMARY KEY (root, path)
    );
    """,
    """
    ALTER TABLE sources ADD COLUMN etag TEXT NOT NULL DEFAULT '';            -- of a crawled page
    ALTER TABLE sources ADD COLUMN last_modified TEXT NOT NULL DEFAULT '';   -- its header
    """,
    """
    ALTER TABLE chunks ADD COLUMN edited INTEGER NOT NULL DEFAULT 0;  -- text is not the document's any more
    ALTER TABLE chunks ADD COLUMN off INTEGER NOT NULL DEFAULT 0;     -- kept, but not searched
    DROP INDEX chunks_document;
    CREATE INDEX chunks_document ON chunks(document_id, ordinal, off);
    CREATE TABLE chunk_history (             -- what a chunk was before each change by hand, for undoing it
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
        ordinal INTEGER NOT NULL,            -- of the chunk: its id changes with its text
        text TEXT NOT NULL,
        off INTEGER NOT NULL,
        actor TEXT NOT NULL,
        created_at INTEGER NOT NULL
    );
    CREATE INDEX chunk_history_chunk ON chunk_history(document_id, ordinal, seq);
    """,
    """
    CREATE TABLE vectors (                   -- of passages, by embedders that are not in service
        chunk_id INTEGER NOT NULL REFERENCES chunks(id) ON DELETE CASCADE,
        embedder TEXT NOT NULL,
        vector BLOB NOT NULL,                -- as chunks.vector
        PRIMARY KEY (chunk_id, embedder)
    );
    """,
    """
    CREATE TABLE intake (                    -- files on their way to being documents, in the order they came
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,             -- names the waiting bytes of an upload in data/queue
        name TEXT NOT NULL,                  -- display text only, never a path
        bytes INTEGER NOT NULL,
        hash TEXT NOT NULL,                  -- sha256 of an upload's bytes; '' for a folder's file
        origin TEXT NOT NULL,                -- upload, sync
        root TEXT NOT NULL DEFAULT '',       -- a folder's file: the folder, absolute
        path TEXT NOT NULL DEFAULT '',       -- and the file below it
        owner TEXT NOT NULL,                 -- who queued it
        status TEXT NOT NULL
            CHECK (status IN ('waiting', 'reading', 'embedding', 'ready', 'failed', 'cancelled')),
        error TEXT NOT NULL DEFAULT '',
        next_step TEXT NOT NULL DEFAULT '',
        documents TEXT NOT NULL DEFAULT '[]',  -- JSON: ids of what came of it; a ZIP archive has several
        deaths INTEGER NOT NULL DEFAULT 0,   -- how often a process died while reading it
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE INDEX intake_status ON intake(status, seq);
    CREATE INDEX intake_same ON intake(owner, hash, root, path);
    """,
    """
    ALTER TABLE intake ADD COLUMN visibility TEXT NOT NULL DEFAULT 'everybody';  -- of its documents
    CREATE TABLE document_access (           -- beside documents, whose rows are long: every query asks it
        document_id TEXT PRIMARY KEY,        -- stays when a document is deleted that not everybody might see
        owner TEXT NOT NULL,                 -- the account that loaded it
        visibility TEXT NOT NULL CHECK (visibility IN ('everybody', 'owner')),
        approval TEXT NOT NULL CHECK (approval IN ('approved', 'waiting', 'rejected'))
    ) WITHOUT ROWID;
    CREATE INDEX document_access_unshared ON document_access(owner)
        WHERE (visibility != 'everybody' OR approval != 'approved');
    INSERT INTO document_access SELECT id, 'local', 'everybody', 'approved' FROM documents;
    """,
    """
    CREATE TABLE account_groups (            -- of accounts; the operator keeps them
        name TEXT PRIMARY KEY,
        created_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE group_members (
        account TEXT NOT NULL,
        group_name TEXT NOT NULL REFERENCES account_groups(name) ON DELETE CASCADE,
        PRIMARY KEY (account, group_name)
    ) WITHOUT ROWID;
    CREATE INDEX group_members_group ON group_members(group_name);
    CREATE TABLE document_groups (           -- who beside its owner may find what has visibility 'owner'
        document_id TEXT NOT NULL,
        group_name TEXT NOT NULL REFERENCES account_groups(name) ON DELETE CASCADE,
        PRIMARY KEY (document_id, group_name)
    ) WITHOUT ROWID;
    CREATE INDEX document_groups_group ON document_groups(group_name);
    ALTER TABLE intake ADD COLUMN group_names TEXT NOT NULL DEFAULT '[]';  -- JSON: with visibility 'owner'
    """,
    """
    CREATE TABLE citations (                 -- of exchanges, once more: to be counted by document
        exchange_id TEXT NOT NULL REFERENCES exchanges(id),
        document_id TEXT NOT NULL,
        start INTEGER NOT NULL,
        "end" INTEGER NOT NULL
    );
    CREATE INDEX citations_document ON citations(document_id, start, "end");
    INSERT INTO citations SELECT exchanges.id, one.value ->> 'document_id', one.value ->> 'start',
        one.value ->> 'end' FROM exchanges, json_each(exchanges.citations) AS one;
    """,
    """
    ALTER TABLE intake ADD COLUMN added TEXT NOT NULL DEFAULT '[]';  -- JSON: ids of what was not there before
    """,
    """
    -- for the list of documents, without reading their texts; the last expression is the title, cut at 200
    CREATE INDEX documents_listed ON documents(created_at DESC, name, id, status,
        substr(text, 1, instr(substr(text, 1, 200) || char(10), char(10)) - 1));
    CREATE INDEX documents_problems ON documents(id)
        WHERE status = 'failed' OR json_remove(quality, '$.pages', '$.tables') != '{}';
    CREATE INDEX chunks_off ON chunks(document_id) WHERE off;
    ALTER TABLE intake ADD COLUMN again TEXT NOT NULL DEFAULT '';  -- the failed document that is read anew
    ALTER TABLE intake ADD COLUMN approval TEXT NOT NULL DEFAULT '';  -- and what was decided about it
    CREATE INDEX intake_again ON intake(again) WHERE again != '';
    """,
    """
    CREATE TABLE replaced (                  -- what synchronised files and crawled pages were before
        document_id TEXT NOT NULL,           -- goes on answering while it is in `documents`
        root TEXT NOT NULL,                  -- of its file, as in `sources`
        path TEXT NOT NULL,
        name TEXT NOT NULL,                  -- the document's
        successor TEXT NOT NULL,             -- a document; '' for all that the file holds now
        error TEXT NOT NULL,                 -- why the version after it could not be read; else ''
        PRIMARY KEY (root, path, document_id)
    ) WITHOUT ROWID;
    CREATE INDEX replaced_document ON replaced(document_id);
    """,
    """
    CREATE TABLE mounts (                    -- folders below synchronised ones where other disks were mounted
        root TEXT NOT NULL,                  -- as in `sources`
        path TEXT NOT NULL,
        PRIMARY KEY (root, path)
    ) WITHOUT ROWID;
    """,
    """
    CREATE INDEX documents_name ON documents(name, created_at);  -- for namesakes
    """,
    """
    ALTER TABLE exchanges ADD COLUMN trace TEXT NOT NULL DEFAULT '{}';  -- JSON: core.types.Trace
    """,
)
