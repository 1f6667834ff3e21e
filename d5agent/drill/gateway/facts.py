"""What the gateway imitates, each row with the fact it rests on and the test that shows it."""

from dataclasses import dataclass
from typing import Final, Literal

Basis = Literal["doc", "live", "inferred"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of the table; `docs/gateway.md` holds the same rows, and a test compares."""

    name: str
    behaviour: str
    basis: tuple[Basis, ...]
    test: str


FACTS: Final = (
    Fact("one-address", "hello names one host, the cluster's endpoint, in the set rs0",
         ("doc",), "test_hello_names_the_gateway_alone"),
    Fact("no-cluster-time", "no reply carries $clusterTime; operationTime is there",
         ("live",), "test_no_reply_carries_cluster_time"),
    Fact("idle-time", "operationTime stays at the last operation while nothing is written",
         ("inferred",), "test_operation_time_stands_still_while_idle"),
    Fact("no-compression", "hello offers no compressor",
         ("inferred",), "test_no_compression_is_offered"),
    Fact("no-retryable-writes", "a retryable write is refused with 301",
         ("live",), "test_a_retryable_write_is_refused"),
    Fact("transactions", "sessions and transactions work",
         ("doc",), "test_a_transaction_commits"),
    Fact("no-causal-consistency", "afterClusterTime, and snapshot reads outside transactions: 303",
         ("live",), "test_causal_consistency_is_refused"),
    Fact("unsupported-commands", "getParameter, dbHash, appendOplogNote, atlasVersion: 303",
         ("doc", "live"), "test_an_unsupported_command_is_refused"),
    Fact("no-capped-collections", "create capped, convertToCapped, cloneCollectionAsCapped: 303",
         ("live",), "test_capped_collections_are_refused"),
    Fact("no-views", "create with viewOn, collMod to a view: 303",
         ("doc",), "test_views_are_refused"),
    Fact("no-collation", "collation in a command, a statement or an index: 303",
         ("doc",), "test_collations_are_refused"),
    Fact("no-local", "nothing in local can be read: no oplog; listDatabases hides it",
         ("doc",), "test_local_is_refused"),
    Fact("collection-listing", "no info.uuid; options carry storageEngine and autoIndexId",
         ("live",), "test_listings_look_like_documentdb"),
    Fact("index-listing", "index specs carry ns, and v is 4",
         ("live",), "test_listings_look_like_documentdb"),
    Fact("modify-change-streams", "modifyChangeStreams on admin, with wildcards; $listChangeStreams",
         ("doc",), "test_scopes_are_enabled_and_listed"),
    Fact("silent-cluster-stream", "a cluster stream over nothing enabled is silent",
         ("live",), "test_a_cluster_stream_is_silent_until_enabled"),
    Fact("disabled-collection-stream", "a collection stream over nothing enabled: 136",
         ("live",), "test_a_collection_stream_needs_enabling"),
    Fact("later-events-only", "enabling covers later events only",
         ("doc",), "test_enabling_covers_later_events_only"),
    Fact("off-and-on-ends-history", "off, then on: a position from before is lost (136)",
         ("inferred",), "test_off_and_on_again_ends_the_history"),
    Fact("watch-options", "startAfter, showExpandedEvents, pre-images: unknown fields; never both "
         "resumeAfter and startAtOperationTime", ("doc", "live"), "test_watch_options_are_checked"),
    Fact("watch-stages", "after $changeStream only $match $project $redact $addFields $replaceRoot",
         ("doc",), "test_watch_stages_are_checked"),
    Fact("event-fields", "no wallTime, lsid, txnNumber, collectionUUID, truncatedArrays",
         ("live",), "test_events_equal_the_direct_stream_less_what_is_absent"),
    Fact("event-types", "creating collections and indexes emits nothing",
         ("live",), "test_creations_emit_nothing"),
    Fact("opaque-tokens", "an event's token is 36 hex characters, a post-batch token 20",
         ("live",), "test_tokens_have_their_lengths"),
    Fact("resumption", "from any token nothing is missing and nothing repeated",
         ("doc",), "test_resuming_from_every_token_is_exact"),
    Fact("start-at-inclusive", "startAtOperationTime is inclusive",
         ("doc",), "test_start_at_operation_time_is_inclusive"),
    Fact("invalid-token", "a token of another cluster or damaged: 9",
         ("live",), "test_a_foreign_or_damaged_token_is_refused"),
    Fact("position-lost", "a position older than the log: 136 CappedPositionLost",
         ("live",), "test_an_expired_position_is_lost"),
    Fact("old-patch-level", "an old patch level sends no post-batch token (option)",
         ("live",), "test_an_old_patch_level_has_no_post_batch_token"),
    Fact("cursor-quota", "too many cursors are already opened (set by command)",
         ("doc",), "test_the_cursor_quota_refuses_a_stream"),
    Fact("fail-over", "connections break, then not-primary for a while; resuming loses nothing",
         ("live",), "test_a_fail_over_loses_nothing"),
    Fact("mongodump-atlas-version", "mongodump 100.7.0 fails on atlasVersion unless it is allowed",
         ("live",), "test_mongodump_needs_atlas_version"),
)  # fmt: skip

# Commands that DocumentDB refuses. `Gateway(allow=…)` lets one of them through.
UNSUPPORTED_COMMANDS: Final = frozenset(
    {"appendOplogNote", "atlasVersion", "cloneCollectionAsCapped", "convertToCapped", "dbHash"}
    | {"dbhash", "getParameter"}
)
HIDDEN_DATABASES: Final = frozenset({"local", "config"})
STREAM_OPTIONS: Final = frozenset({"allChangesForCluster", "fullDocument", "resumeAfter", "startAtOperationTime"})
FULL_DOCUMENT: Final = frozenset({"default", "updateLookup"})
STREAM_STAGES: Final = frozenset({"$match", "$project", "$redact", "$addFields", "$replaceRoot"})
ABSENT_EVENT_FIELDS: Final = frozenset({b"wallTime", b"lsid", b"txnNumber", b"collectionUUID"})

BAD_VALUE: Final = 2
INVALID_TOKEN: Final = 9
LOST: Final = 136
RETRYABLE_WRITES: Final = 301
NOT_SUPPORTED: Final = 303
NOT_PRIMARY: Final = 10107
UNKNOWN_FIELD: Final = 40415
CURSOR_QUOTA: Final = 1

POSITION_LOST: Final = "CappedPositionLost: CollectionScan died due to position in capped collection being deleted"
NEVER_ENABLED: Final = "modifyChangeStreams has not been run for this collection"
TOO_MANY_CURSORS: Final = "Cannot open a new cursor since too many cursors are already opened"
# What a mongod says when its oplog no longer holds the position.
UPSTREAM_LOST: Final = frozenset({280, 286})
