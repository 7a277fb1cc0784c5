// Derived by `cargo xtask etcd` from etcd's published v3 API; do not edit.

pub mod mvccpb {
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct KeyValue {
        #[prost(bytes = "bytes", tag = "1")]
        pub key: ::prost::bytes::Bytes,
        #[prost(int64, tag = "2")]
        pub create_revision: i64,
        #[prost(int64, tag = "3")]
        pub mod_revision: i64,
        #[prost(int64, tag = "4")]
        pub version: i64,
        #[prost(bytes = "bytes", tag = "5")]
        pub value: ::prost::bytes::Bytes,
        #[prost(int64, tag = "6")]
        pub lease: i64,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct Event {
        #[prost(enumeration = "event::EventType", tag = "1")]
        pub r#type: i32,
        #[prost(message, optional, tag = "2")]
        pub kv: ::core::option::Option<KeyValue>,
        #[prost(message, optional, tag = "3")]
        pub prev_kv: ::core::option::Option<KeyValue>,
    }
    /// Nested message and enum types in `Event`.
    pub mod event {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum EventType {
            Put = 0,
            Delete = 1,
        }
        impl EventType {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Put => "PUT",
                    Self::Delete => "DELETE",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "PUT" => Some(Self::Put),
                    "DELETE" => Some(Self::Delete),
                    _ => None,
                }
            }
        }
    }
}

pub mod etcdserverpb {
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct ResponseHeader {
        #[prost(uint64, tag = "1")]
        pub cluster_id: u64,
        #[prost(uint64, tag = "2")]
        pub member_id: u64,
        #[prost(int64, tag = "3")]
        pub revision: i64,
        #[prost(uint64, tag = "4")]
        pub raft_term: u64,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct RangeRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub key: ::prost::alloc::vec::Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub range_end: ::prost::alloc::vec::Vec<u8>,
        #[prost(int64, tag = "3")]
        pub limit: i64,
        #[prost(int64, tag = "4")]
        pub revision: i64,
        #[prost(enumeration = "range_request::SortOrder", tag = "5")]
        pub sort_order: i32,
        #[prost(enumeration = "range_request::SortTarget", tag = "6")]
        pub sort_target: i32,
        #[prost(bool, tag = "7")]
        pub serializable: bool,
        #[prost(bool, tag = "8")]
        pub keys_only: bool,
        #[prost(bool, tag = "9")]
        pub count_only: bool,
        #[prost(int64, tag = "10")]
        pub min_mod_revision: i64,
        #[prost(int64, tag = "11")]
        pub max_mod_revision: i64,
        #[prost(int64, tag = "12")]
        pub min_create_revision: i64,
        #[prost(int64, tag = "13")]
        pub max_create_revision: i64,
    }
    /// Nested message and enum types in `RangeRequest`.
    pub mod range_request {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum SortOrder {
            None = 0,
            Ascend = 1,
            Descend = 2,
        }
        impl SortOrder {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::None => "NONE",
                    Self::Ascend => "ASCEND",
                    Self::Descend => "DESCEND",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "NONE" => Some(Self::None),
                    "ASCEND" => Some(Self::Ascend),
                    "DESCEND" => Some(Self::Descend),
                    _ => None,
                }
            }
        }
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum SortTarget {
            Key = 0,
            Version = 1,
            Create = 2,
            Mod = 3,
            Value = 4,
        }
        impl SortTarget {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Key => "KEY",
                    Self::Version => "VERSION",
                    Self::Create => "CREATE",
                    Self::Mod => "MOD",
                    Self::Value => "VALUE",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "KEY" => Some(Self::Key),
                    "VERSION" => Some(Self::Version),
                    "CREATE" => Some(Self::Create),
                    "MOD" => Some(Self::Mod),
                    "VALUE" => Some(Self::Value),
                    _ => None,
                }
            }
        }
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct RangeResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(message, repeated, tag = "2")]
        pub kvs: ::prost::alloc::vec::Vec<super::mvccpb::KeyValue>,
        #[prost(bool, tag = "3")]
        pub more: bool,
        #[prost(int64, tag = "4")]
        pub count: i64,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct PutRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub key: ::prost::alloc::vec::Vec<u8>,
        #[prost(bytes = "bytes", tag = "2")]
        pub value: ::prost::bytes::Bytes,
        #[prost(int64, tag = "3")]
        pub lease: i64,
        #[prost(bool, tag = "4")]
        pub prev_kv: bool,
        #[prost(bool, tag = "5")]
        pub ignore_value: bool,
        #[prost(bool, tag = "6")]
        pub ignore_lease: bool,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct PutResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(message, optional, tag = "2")]
        pub prev_kv: ::core::option::Option<super::mvccpb::KeyValue>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DeleteRangeRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub key: ::prost::alloc::vec::Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub range_end: ::prost::alloc::vec::Vec<u8>,
        #[prost(bool, tag = "3")]
        pub prev_kv: bool,
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct DeleteRangeResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(int64, tag = "2")]
        pub deleted: i64,
        #[prost(message, repeated, tag = "3")]
        pub prev_kvs: ::prost::alloc::vec::Vec<super::mvccpb::KeyValue>,
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct RequestOp {
        #[prost(oneof = "request_op::Request", tags = "1, 2, 3, 4")]
        pub request: ::core::option::Option<request_op::Request>,
    }
    /// Nested message and enum types in `RequestOp`.
    pub mod request_op {
        #[derive(Clone, PartialEq, ::prost::Oneof)]
        pub enum Request {
            #[prost(message, tag = "1")]
            RequestRange(super::RangeRequest),
            #[prost(message, tag = "2")]
            RequestPut(super::PutRequest),
            #[prost(message, tag = "3")]
            RequestDeleteRange(super::DeleteRangeRequest),
            #[prost(message, tag = "4")]
            RequestTxn(super::TxnRequest),
        }
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct ResponseOp {
        #[prost(oneof = "response_op::Response", tags = "1, 2, 3, 4")]
        pub response: ::core::option::Option<response_op::Response>,
    }
    /// Nested message and enum types in `ResponseOp`.
    pub mod response_op {
        #[derive(Clone, PartialEq, ::prost::Oneof)]
        pub enum Response {
            #[prost(message, tag = "1")]
            ResponseRange(super::RangeResponse),
            #[prost(message, tag = "2")]
            ResponsePut(super::PutResponse),
            #[prost(message, tag = "3")]
            ResponseDeleteRange(super::DeleteRangeResponse),
            #[prost(message, tag = "4")]
            ResponseTxn(super::TxnResponse),
        }
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct Compare {
        #[prost(enumeration = "compare::CompareResult", tag = "1")]
        pub result: i32,
        #[prost(enumeration = "compare::CompareTarget", tag = "2")]
        pub target: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub key: ::prost::alloc::vec::Vec<u8>,
        #[prost(bytes = "vec", tag = "64")]
        pub range_end: ::prost::alloc::vec::Vec<u8>,
        #[prost(oneof = "compare::TargetUnion", tags = "4, 5, 6, 7, 8")]
        pub target_union: ::core::option::Option<compare::TargetUnion>,
    }
    /// Nested message and enum types in `Compare`.
    pub mod compare {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum CompareResult {
            Equal = 0,
            Greater = 1,
            Less = 2,
            NotEqual = 3,
        }
        impl CompareResult {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Equal => "EQUAL",
                    Self::Greater => "GREATER",
                    Self::Less => "LESS",
                    Self::NotEqual => "NOT_EQUAL",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "EQUAL" => Some(Self::Equal),
                    "GREATER" => Some(Self::Greater),
                    "LESS" => Some(Self::Less),
                    "NOT_EQUAL" => Some(Self::NotEqual),
                    _ => None,
                }
            }
        }
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum CompareTarget {
            Version = 0,
            Create = 1,
            Mod = 2,
            Value = 3,
            Lease = 4,
        }
        impl CompareTarget {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Version => "VERSION",
                    Self::Create => "CREATE",
                    Self::Mod => "MOD",
                    Self::Value => "VALUE",
                    Self::Lease => "LEASE",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "VERSION" => Some(Self::Version),
                    "CREATE" => Some(Self::Create),
                    "MOD" => Some(Self::Mod),
                    "VALUE" => Some(Self::Value),
                    "LEASE" => Some(Self::Lease),
                    _ => None,
                }
            }
        }
        #[derive(Clone, PartialEq, Eq, Hash, ::prost::Oneof)]
        pub enum TargetUnion {
            #[prost(int64, tag = "4")]
            Version(i64),
            #[prost(int64, tag = "5")]
            CreateRevision(i64),
            #[prost(int64, tag = "6")]
            ModRevision(i64),
            #[prost(bytes, tag = "7")]
            Value(::prost::alloc::vec::Vec<u8>),
            #[prost(int64, tag = "8")]
            Lease(i64),
        }
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct TxnRequest {
        #[prost(message, repeated, tag = "1")]
        pub compare: ::prost::alloc::vec::Vec<Compare>,
        #[prost(message, repeated, tag = "2")]
        pub success: ::prost::alloc::vec::Vec<RequestOp>,
        #[prost(message, repeated, tag = "3")]
        pub failure: ::prost::alloc::vec::Vec<RequestOp>,
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct TxnResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(bool, tag = "2")]
        pub succeeded: bool,
        #[prost(message, repeated, tag = "3")]
        pub responses: ::prost::alloc::vec::Vec<ResponseOp>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct CompactionRequest {
        #[prost(int64, tag = "1")]
        pub revision: i64,
        #[prost(bool, tag = "2")]
        pub physical: bool,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct CompactionResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HashRequest {}
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HashKvRequest {
        #[prost(int64, tag = "1")]
        pub revision: i64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HashKvResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(uint32, tag = "2")]
        pub hash: u32,
        #[prost(int64, tag = "3")]
        pub compact_revision: i64,
        #[prost(int64, tag = "4")]
        pub hash_revision: i64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HashResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(uint32, tag = "2")]
        pub hash: u32,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct SnapshotRequest {}
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct SnapshotResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(uint64, tag = "2")]
        pub remaining_bytes: u64,
        #[prost(bytes = "vec", tag = "3")]
        pub blob: ::prost::alloc::vec::Vec<u8>,
        #[prost(string, tag = "4")]
        pub version: ::prost::alloc::string::String,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct WatchRequest {
        #[prost(oneof = "watch_request::RequestUnion", tags = "1, 2, 3")]
        pub request_union: ::core::option::Option<watch_request::RequestUnion>,
    }
    /// Nested message and enum types in `WatchRequest`.
    pub mod watch_request {
        #[derive(Clone, PartialEq, Eq, Hash, ::prost::Oneof)]
        pub enum RequestUnion {
            #[prost(message, tag = "1")]
            CreateRequest(super::WatchCreateRequest),
            #[prost(message, tag = "2")]
            CancelRequest(super::WatchCancelRequest),
            #[prost(message, tag = "3")]
            ProgressRequest(super::WatchProgressRequest),
        }
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct WatchCreateRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub key: ::prost::alloc::vec::Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub range_end: ::prost::alloc::vec::Vec<u8>,
        #[prost(int64, tag = "3")]
        pub start_revision: i64,
        #[prost(bool, tag = "4")]
        pub progress_notify: bool,
        #[prost(enumeration = "watch_create_request::FilterType", repeated, packed = "false", tag = "5")]
        pub filters: ::prost::alloc::vec::Vec<i32>,
        #[prost(bool, tag = "6")]
        pub prev_kv: bool,
        #[prost(int64, tag = "7")]
        pub watch_id: i64,
        #[prost(bool, tag = "8")]
        pub fragment: bool,
    }
    /// Nested message and enum types in `WatchCreateRequest`.
    pub mod watch_create_request {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum FilterType {
            Noput = 0,
            Nodelete = 1,
        }
        impl FilterType {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Noput => "NOPUT",
                    Self::Nodelete => "NODELETE",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "NOPUT" => Some(Self::Noput),
                    "NODELETE" => Some(Self::Nodelete),
                    _ => None,
                }
            }
        }
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct WatchCancelRequest {
        #[prost(int64, tag = "1")]
        pub watch_id: i64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct WatchProgressRequest {}
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct WatchResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(int64, tag = "2")]
        pub watch_id: i64,
        #[prost(bool, tag = "3")]
        pub created: bool,
        #[prost(bool, tag = "4")]
        pub canceled: bool,
        #[prost(int64, tag = "5")]
        pub compact_revision: i64,
        #[prost(string, tag = "6")]
        pub cancel_reason: ::prost::alloc::string::String,
        #[prost(bool, tag = "7")]
        pub fragment: bool,
        #[prost(message, repeated, tag = "11")]
        pub events: ::prost::alloc::vec::Vec<super::mvccpb::Event>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseGrantRequest {
        #[prost(int64, tag = "1")]
        pub ttl: i64,
        #[prost(int64, tag = "2")]
        pub id: i64,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseGrantResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(int64, tag = "2")]
        pub id: i64,
        #[prost(int64, tag = "3")]
        pub ttl: i64,
        #[prost(string, tag = "4")]
        pub error: ::prost::alloc::string::String,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseRevokeRequest {
        #[prost(int64, tag = "1")]
        pub id: i64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseRevokeResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseKeepAliveRequest {
        #[prost(int64, tag = "1")]
        pub id: i64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseKeepAliveResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(int64, tag = "2")]
        pub id: i64,
        #[prost(int64, tag = "3")]
        pub ttl: i64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseTimeToLiveRequest {
        #[prost(int64, tag = "1")]
        pub id: i64,
        #[prost(bool, tag = "2")]
        pub keys: bool,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseTimeToLiveResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(int64, tag = "2")]
        pub id: i64,
        #[prost(int64, tag = "3")]
        pub ttl: i64,
        #[prost(int64, tag = "4")]
        pub granted_ttl: i64,
        #[prost(bytes = "vec", repeated, tag = "5")]
        pub keys: ::prost::alloc::vec::Vec<::prost::alloc::vec::Vec<u8>>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseLeasesRequest {}
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct LeaseStatus {
        #[prost(int64, tag = "1")]
        pub id: i64,
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct LeaseLeasesResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(message, repeated, tag = "2")]
        pub leases: ::prost::alloc::vec::Vec<LeaseStatus>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DefragmentRequest {}
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DefragmentResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct MoveLeaderRequest {
        #[prost(uint64, tag = "1")]
        pub target_id: u64,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct MoveLeaderResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct AlarmRequest {
        #[prost(enumeration = "alarm_request::AlarmAction", tag = "1")]
        pub action: i32,
        #[prost(uint64, tag = "2")]
        pub member_id: u64,
        #[prost(enumeration = "AlarmType", tag = "3")]
        pub alarm: i32,
    }
    /// Nested message and enum types in `AlarmRequest`.
    pub mod alarm_request {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum AlarmAction {
            Get = 0,
            Activate = 1,
            Deactivate = 2,
        }
        impl AlarmAction {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Get => "GET",
                    Self::Activate => "ACTIVATE",
                    Self::Deactivate => "DEACTIVATE",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "GET" => Some(Self::Get),
                    "ACTIVATE" => Some(Self::Activate),
                    "DEACTIVATE" => Some(Self::Deactivate),
                    _ => None,
                }
            }
        }
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct AlarmMember {
        #[prost(uint64, tag = "1")]
        pub member_id: u64,
        #[prost(enumeration = "AlarmType", tag = "2")]
        pub alarm: i32,
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct AlarmResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(message, repeated, tag = "2")]
        pub alarms: ::prost::alloc::vec::Vec<AlarmMember>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DowngradeRequest {
        #[prost(enumeration = "downgrade_request::DowngradeAction", tag = "1")]
        pub action: i32,
        #[prost(string, tag = "2")]
        pub version: ::prost::alloc::string::String,
    }
    /// Nested message and enum types in `DowngradeRequest`.
    pub mod downgrade_request {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum DowngradeAction {
            Validate = 0,
            Enable = 1,
            Cancel = 2,
        }
        impl DowngradeAction {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Validate => "VALIDATE",
                    Self::Enable => "ENABLE",
                    Self::Cancel => "CANCEL",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "VALIDATE" => Some(Self::Validate),
                    "ENABLE" => Some(Self::Enable),
                    "CANCEL" => Some(Self::Cancel),
                    _ => None,
                }
            }
        }
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DowngradeResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(string, tag = "2")]
        pub version: ::prost::alloc::string::String,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct StatusRequest {}
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct StatusResponse {
        #[prost(message, optional, tag = "1")]
        pub header: ::core::option::Option<ResponseHeader>,
        #[prost(string, tag = "2")]
        pub version: ::prost::alloc::string::String,
        #[prost(int64, tag = "3")]
        pub db_size: i64,
        #[prost(uint64, tag = "4")]
        pub leader: u64,
        #[prost(uint64, tag = "5")]
        pub raft_index: u64,
        #[prost(uint64, tag = "6")]
        pub raft_term: u64,
        #[prost(uint64, tag = "7")]
        pub raft_applied_index: u64,
        #[prost(string, repeated, tag = "8")]
        pub errors: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
        #[prost(int64, tag = "9")]
        pub db_size_in_use: i64,
        #[prost(bool, tag = "10")]
        pub is_learner: bool,
        #[prost(string, tag = "11")]
        pub storage_version: ::prost::alloc::string::String,
        #[prost(int64, tag = "12")]
        pub db_size_quota: i64,
        #[prost(message, optional, tag = "13")]
        pub downgrade_info: ::core::option::Option<DowngradeInfo>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DowngradeInfo {
        #[prost(bool, tag = "1")]
        pub enabled: bool,
        #[prost(string, tag = "2")]
        pub target_version: ::prost::alloc::string::String,
    }
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct RangeStreamResponse {
        #[prost(message, optional, tag = "1")]
        pub range_response: ::core::option::Option<RangeResponse>,
    }
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
    #[repr(i32)]
    pub enum AlarmType {
        None = 0,
        Nospace = 1,
        Corrupt = 2,
    }
    impl AlarmType {
        /// String value of the enum field names used in the ProtoBuf definition.
        ///
        /// The values are not transformed in any way and thus are considered stable
        /// (if the ProtoBuf definition does not change) and safe for programmatic use.
        pub fn as_str_name(&self) -> &'static str {
            match self {
                Self::None => "NONE",
                Self::Nospace => "NOSPACE",
                Self::Corrupt => "CORRUPT",
            }
        }
        /// Creates an enum from field names used in the ProtoBuf definition.
        pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
            match value {
                "NONE" => Some(Self::None),
                "NOSPACE" => Some(Self::Nospace),
                "CORRUPT" => Some(Self::Corrupt),
                _ => None,
            }
        }
    }
    /// Generated client implementations.
    pub mod kv_client {
        #![allow(unused_variables, dead_code, missing_docs, clippy::wildcard_imports, clippy::let_unit_value)]
        use tonic::codegen::http::Uri;
        use tonic::codegen::*;
        #[derive(Debug, Clone)]
        pub struct KvClient<T> {
            inner: tonic::client::Grpc<T>,
        }
        impl<T> KvClient<T>
        where
            T: tonic::client::GrpcService<tonic::body::Body>,
            T::Error: Into<StdError>,
            T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
            <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
        {
            pub fn new(inner: T) -> Self {
                let inner = tonic::client::Grpc::new(inner);
                Self { inner }
            }
            pub fn with_origin(inner: T, origin: Uri) -> Self {
                let inner = tonic::client::Grpc::with_origin(inner, origin);
                Self { inner }
            }
            pub fn with_interceptor<F>(inner: T, interceptor: F) -> KvClient<InterceptedService<T, F>>
            where
                F: tonic::service::Interceptor,
                T::ResponseBody: Default,
                T: tonic::codegen::Service<
                        http::Request<tonic::body::Body>,
                        Response = http::Response<
                            <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                        >,
                    >,
                <T as tonic::codegen::Service<http::Request<tonic::body::Body>>>::Error:
                    Into<StdError> + std::marker::Send + std::marker::Sync,
            {
                KvClient::new(InterceptedService::new(inner, interceptor))
            }
            /// Compress requests with the given encoding.
            ///
            /// This requires the server to support it otherwise it might respond with an
            /// error.
            #[must_use]
            pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.send_compressed(encoding);
                self
            }
            /// Enable decompressing responses.
            #[must_use]
            pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.accept_compressed(encoding);
                self
            }
            /// Limits the maximum size of a decoded message.
            ///
            /// Default: `4MB`
            #[must_use]
            pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_decoding_message_size(limit);
                self
            }
            /// Limits the maximum size of an encoded message.
            ///
            /// Default: `usize::MAX`
            #[must_use]
            pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_encoding_message_size(limit);
                self
            }
            pub async fn range(
                &mut self,
                request: impl tonic::IntoRequest<super::RangeRequest>,
            ) -> std::result::Result<tonic::Response<super::RangeResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.KV", "Range"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn range_stream(
                &mut self,
                request: impl tonic::IntoRequest<super::RangeRequest>,
            ) -> std::result::Result<
                tonic::Response<tonic::codec::Streaming<super::RangeStreamResponse>>,
                tonic::Status,
            > {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/RangeStream");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.KV", "RangeStream"));
                self.inner.server_streaming(req, path, codec).await
            }
            pub async fn put(
                &mut self,
                request: impl tonic::IntoRequest<super::PutRequest>,
            ) -> std::result::Result<tonic::Response<super::PutResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.KV", "Put"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn delete_range(
                &mut self,
                request: impl tonic::IntoRequest<super::DeleteRangeRequest>,
            ) -> std::result::Result<tonic::Response<super::DeleteRangeResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/DeleteRange");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.KV", "DeleteRange"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn txn(
                &mut self,
                request: impl tonic::IntoRequest<super::TxnRequest>,
            ) -> std::result::Result<tonic::Response<super::TxnResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Txn");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.KV", "Txn"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn compact(
                &mut self,
                request: impl tonic::IntoRequest<super::CompactionRequest>,
            ) -> std::result::Result<tonic::Response<super::CompactionResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Compact");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.KV", "Compact"));
                self.inner.unary(req, path, codec).await
            }
        }
    }
    /// Generated client implementations.
    pub mod watch_client {
        #![allow(unused_variables, dead_code, missing_docs, clippy::wildcard_imports, clippy::let_unit_value)]
        use tonic::codegen::http::Uri;
        use tonic::codegen::*;
        #[derive(Debug, Clone)]
        pub struct WatchClient<T> {
            inner: tonic::client::Grpc<T>,
        }
        impl<T> WatchClient<T>
        where
            T: tonic::client::GrpcService<tonic::body::Body>,
            T::Error: Into<StdError>,
            T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
            <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
        {
            pub fn new(inner: T) -> Self {
                let inner = tonic::client::Grpc::new(inner);
                Self { inner }
            }
            pub fn with_origin(inner: T, origin: Uri) -> Self {
                let inner = tonic::client::Grpc::with_origin(inner, origin);
                Self { inner }
            }
            pub fn with_interceptor<F>(inner: T, interceptor: F) -> WatchClient<InterceptedService<T, F>>
            where
                F: tonic::service::Interceptor,
                T::ResponseBody: Default,
                T: tonic::codegen::Service<
                        http::Request<tonic::body::Body>,
                        Response = http::Response<
                            <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                        >,
                    >,
                <T as tonic::codegen::Service<http::Request<tonic::body::Body>>>::Error:
                    Into<StdError> + std::marker::Send + std::marker::Sync,
            {
                WatchClient::new(InterceptedService::new(inner, interceptor))
            }
            /// Compress requests with the given encoding.
            ///
            /// This requires the server to support it otherwise it might respond with an
            /// error.
            #[must_use]
            pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.send_compressed(encoding);
                self
            }
            /// Enable decompressing responses.
            #[must_use]
            pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.accept_compressed(encoding);
                self
            }
            /// Limits the maximum size of a decoded message.
            ///
            /// Default: `4MB`
            #[must_use]
            pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_decoding_message_size(limit);
                self
            }
            /// Limits the maximum size of an encoded message.
            ///
            /// Default: `usize::MAX`
            #[must_use]
            pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_encoding_message_size(limit);
                self
            }
            pub async fn watch(
                &mut self,
                request: impl tonic::IntoStreamingRequest<Message = super::WatchRequest>,
            ) -> std::result::Result<
                tonic::Response<tonic::codec::Streaming<super::WatchResponse>>,
                tonic::Status,
            > {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
                let mut req = request.into_streaming_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Watch", "Watch"));
                self.inner.streaming(req, path, codec).await
            }
        }
    }
    /// Generated client implementations.
    pub mod lease_client {
        #![allow(unused_variables, dead_code, missing_docs, clippy::wildcard_imports, clippy::let_unit_value)]
        use tonic::codegen::http::Uri;
        use tonic::codegen::*;
        #[derive(Debug, Clone)]
        pub struct LeaseClient<T> {
            inner: tonic::client::Grpc<T>,
        }
        impl<T> LeaseClient<T>
        where
            T: tonic::client::GrpcService<tonic::body::Body>,
            T::Error: Into<StdError>,
            T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
            <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
        {
            pub fn new(inner: T) -> Self {
                let inner = tonic::client::Grpc::new(inner);
                Self { inner }
            }
            pub fn with_origin(inner: T, origin: Uri) -> Self {
                let inner = tonic::client::Grpc::with_origin(inner, origin);
                Self { inner }
            }
            pub fn with_interceptor<F>(inner: T, interceptor: F) -> LeaseClient<InterceptedService<T, F>>
            where
                F: tonic::service::Interceptor,
                T::ResponseBody: Default,
                T: tonic::codegen::Service<
                        http::Request<tonic::body::Body>,
                        Response = http::Response<
                            <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                        >,
                    >,
                <T as tonic::codegen::Service<http::Request<tonic::body::Body>>>::Error:
                    Into<StdError> + std::marker::Send + std::marker::Sync,
            {
                LeaseClient::new(InterceptedService::new(inner, interceptor))
            }
            /// Compress requests with the given encoding.
            ///
            /// This requires the server to support it otherwise it might respond with an
            /// error.
            #[must_use]
            pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.send_compressed(encoding);
                self
            }
            /// Enable decompressing responses.
            #[must_use]
            pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.accept_compressed(encoding);
                self
            }
            /// Limits the maximum size of a decoded message.
            ///
            /// Default: `4MB`
            #[must_use]
            pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_decoding_message_size(limit);
                self
            }
            /// Limits the maximum size of an encoded message.
            ///
            /// Default: `usize::MAX`
            #[must_use]
            pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_encoding_message_size(limit);
                self
            }
            pub async fn lease_grant(
                &mut self,
                request: impl tonic::IntoRequest<super::LeaseGrantRequest>,
            ) -> std::result::Result<tonic::Response<super::LeaseGrantResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Lease/LeaseGrant");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Lease", "LeaseGrant"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn lease_revoke(
                &mut self,
                request: impl tonic::IntoRequest<super::LeaseRevokeRequest>,
            ) -> std::result::Result<tonic::Response<super::LeaseRevokeResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Lease/LeaseRevoke");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Lease", "LeaseRevoke"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn lease_keep_alive(
                &mut self,
                request: impl tonic::IntoStreamingRequest<Message = super::LeaseKeepAliveRequest>,
            ) -> std::result::Result<
                tonic::Response<tonic::codec::Streaming<super::LeaseKeepAliveResponse>>,
                tonic::Status,
            > {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
                let mut req = request.into_streaming_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Lease", "LeaseKeepAlive"));
                self.inner.streaming(req, path, codec).await
            }
            pub async fn lease_time_to_live(
                &mut self,
                request: impl tonic::IntoRequest<super::LeaseTimeToLiveRequest>,
            ) -> std::result::Result<tonic::Response<super::LeaseTimeToLiveResponse>, tonic::Status>
            {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Lease/LeaseTimeToLive");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Lease", "LeaseTimeToLive"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn lease_leases(
                &mut self,
                request: impl tonic::IntoRequest<super::LeaseLeasesRequest>,
            ) -> std::result::Result<tonic::Response<super::LeaseLeasesResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Lease/LeaseLeases");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Lease", "LeaseLeases"));
                self.inner.unary(req, path, codec).await
            }
        }
    }
    /// Generated client implementations.
    pub mod maintenance_client {
        #![allow(unused_variables, dead_code, missing_docs, clippy::wildcard_imports, clippy::let_unit_value)]
        use tonic::codegen::http::Uri;
        use tonic::codegen::*;
        #[derive(Debug, Clone)]
        pub struct MaintenanceClient<T> {
            inner: tonic::client::Grpc<T>,
        }
        impl<T> MaintenanceClient<T>
        where
            T: tonic::client::GrpcService<tonic::body::Body>,
            T::Error: Into<StdError>,
            T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
            <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
        {
            pub fn new(inner: T) -> Self {
                let inner = tonic::client::Grpc::new(inner);
                Self { inner }
            }
            pub fn with_origin(inner: T, origin: Uri) -> Self {
                let inner = tonic::client::Grpc::with_origin(inner, origin);
                Self { inner }
            }
            pub fn with_interceptor<F>(
                inner: T,
                interceptor: F,
            ) -> MaintenanceClient<InterceptedService<T, F>>
            where
                F: tonic::service::Interceptor,
                T::ResponseBody: Default,
                T: tonic::codegen::Service<
                        http::Request<tonic::body::Body>,
                        Response = http::Response<
                            <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                        >,
                    >,
                <T as tonic::codegen::Service<http::Request<tonic::body::Body>>>::Error:
                    Into<StdError> + std::marker::Send + std::marker::Sync,
            {
                MaintenanceClient::new(InterceptedService::new(inner, interceptor))
            }
            /// Compress requests with the given encoding.
            ///
            /// This requires the server to support it otherwise it might respond with an
            /// error.
            #[must_use]
            pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.send_compressed(encoding);
                self
            }
            /// Enable decompressing responses.
            #[must_use]
            pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
                self.inner = self.inner.accept_compressed(encoding);
                self
            }
            /// Limits the maximum size of a decoded message.
            ///
            /// Default: `4MB`
            #[must_use]
            pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_decoding_message_size(limit);
                self
            }
            /// Limits the maximum size of an encoded message.
            ///
            /// Default: `usize::MAX`
            #[must_use]
            pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
                self.inner = self.inner.max_encoding_message_size(limit);
                self
            }
            pub async fn alarm(
                &mut self,
                request: impl tonic::IntoRequest<super::AlarmRequest>,
            ) -> std::result::Result<tonic::Response<super::AlarmResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Alarm");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "Alarm"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn status(
                &mut self,
                request: impl tonic::IntoRequest<super::StatusRequest>,
            ) -> std::result::Result<tonic::Response<super::StatusResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "Status"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn defragment(
                &mut self,
                request: impl tonic::IntoRequest<super::DefragmentRequest>,
            ) -> std::result::Result<tonic::Response<super::DefragmentResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Defragment");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "Defragment"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn hash(
                &mut self,
                request: impl tonic::IntoRequest<super::HashRequest>,
            ) -> std::result::Result<tonic::Response<super::HashResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Hash");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "Hash"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn hash_kv(
                &mut self,
                request: impl tonic::IntoRequest<super::HashKvRequest>,
            ) -> std::result::Result<tonic::Response<super::HashKvResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/HashKV");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "HashKV"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn snapshot(
                &mut self,
                request: impl tonic::IntoRequest<super::SnapshotRequest>,
            ) -> std::result::Result<
                tonic::Response<tonic::codec::Streaming<super::SnapshotResponse>>,
                tonic::Status,
            > {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Snapshot");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "Snapshot"));
                self.inner.server_streaming(req, path, codec).await
            }
            pub async fn move_leader(
                &mut self,
                request: impl tonic::IntoRequest<super::MoveLeaderRequest>,
            ) -> std::result::Result<tonic::Response<super::MoveLeaderResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/MoveLeader");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "MoveLeader"));
                self.inner.unary(req, path, codec).await
            }
            pub async fn downgrade(
                &mut self,
                request: impl tonic::IntoRequest<super::DowngradeRequest>,
            ) -> std::result::Result<tonic::Response<super::DowngradeResponse>, tonic::Status> {
                self.inner
                    .ready()
                    .await
                    .map_err(|e| tonic::Status::unknown(format!("Service was not ready: {}", e.into())))?;
                let codec = tonic_prost::ProstCodec::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Downgrade");
                let mut req = request.into_request();
                req.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Maintenance", "Downgrade"));
                self.inner.unary(req, path, codec).await
            }
        }
    }
}
