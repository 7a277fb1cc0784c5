//! The command line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api_options::ApiOptions;
use crate::backup::BackupAction;
use crate::cluster_network::ClusterNetworkOptions;
use crate::datastore::DatastoreOptions;
use crate::migrate::DatastoreAction;
use crate::service_proxy::ServiceProxyOptions;
use crate::simulate::SimulateOptions;

/// Where everything is kept unless `--data-dir` says otherwise.
pub const DATA_DIR: &str = "/var/lib/navarch";
/// How registries are reached, unless `--private-registry` says otherwise.
const REGISTRIES: &str = "/etc/navarch/registries.yaml";

/// Kubernetes in one binary.
#[derive(Parser)]
#[command(name = "navarch", version, about = "Kubernetes in one binary")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The options of this process as they are in force, by name; what is secret is only said to be so.
pub fn flags() -> BTreeMap<String, String> {
    flags_of(std::env::args_os())
}

fn flags_of<T: Into<std::ffi::OsString> + Clone>(
    line: impl IntoIterator<Item = T>,
) -> BTreeMap<String, String> {
    let mut command = Cli::command();
    let Ok(matches) = command.try_get_matches_from_mut(line) else { return BTreeMap::new() };
    let Some((name, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let options = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let shown = |option: &clap::Arg| {
        let values = matches.try_get_raw(option.get_id().as_str()).ok()??;
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        let name = option.get_long()?;
        Some((name.to_owned(), if name == "token" { "CLASSIFIED".to_owned() } else { values.join(",") }))
    };
    options.filter_map(shown).collect()
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Runs the cluster in the foreground. Prints one line when the API is ready; containers outlive it.
    Server(ServerOptions),
    /// Joins this machine to a cluster as a node, in the foreground. Containers outlive it.
    Agent(AgentOptions),
    /// Prints the token by which nodes join the cluster that runs here.
    Token {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Starts the cluster in the background, waits until its node is ready, and adds a kubeconfig context.
    Up(ServerOptions),
    /// Stops the server; containers keep running until the next `up`, or until `reset`.
    Down {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Removes everything the cluster made on this machine, and proves it.
    Reset {
        /// The cluster's folder; it is removed, too.
        #[arg(long, default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Manages the images of this node.
    Image {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR, global = true)]
        data_dir: PathBuf,
        /// What to do.
        #[command(subcommand)]
        action: ImageAction,
    },
    /// Shows or changes how Secrets are encrypted at rest.
    SecretsEncryption {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR, global = true)]
        data_dir: PathBuf,
        /// What to do.
        #[command(subcommand)]
        action: EncryptionAction,
    },
    /// Makes backups of the cluster's data, and brings them back.
    Backup {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR, global = true)]
        data_dir: PathBuf,
        /// What to do.
        #[command(subcommand)]
        action: BackupAction,
    },
    /// Moves the cluster's data.
    Datastore {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR, global = true)]
        data_dir: PathBuf,
        /// What to do.
        #[command(subcommand)]
        action: DatastoreAction,
    },
    /// Shows what each rule of a NetworkPolicy let through on this node, and what was dropped.
    Policies {
        /// The cluster's folder.
        #[arg(long, default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
    /// Runs a control plane with nodes that are not there, to try what a cluster of that size does. Prints how to reach it.
    Simulate(SimulateOptions),
    /// Serves one command of the CNI protocol as a network plugin, for other container runtimes.
    Cni,
    /// Prints the version.
    Version,
    /// Serves one page: the content of the example's image.
    #[command(hide = true)]
    Web(WebOptions),
}

/// How the server runs.
#[derive(Args, Clone)]
pub struct ServerOptions {
    /// The cluster's folder: certificates, data, images, logs, `admin.kubeconfig`.
    #[arg(long, default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Where the API listens; port 0 takes a free one.
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,
    /// Parts that are not to run here.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub disable: Vec<Part>,
    /// The node's name; the host's name in lower case where it is not given.
    #[arg(long)]
    pub node_name: Option<String>,
    /// Mirrors, credentials and authorities of image registries, in the form of k3s's `registries.yaml`.
    #[arg(long, default_value = REGISTRIES)]
    pub private_registry: PathBuf,
    /// How pods are scheduled: a `KubeSchedulerConfiguration`, as kube-scheduler's `--config` takes it.
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// How packets reach the pods of other nodes.
    #[arg(long, value_enum, default_value = "vxlan")]
    pub node_network: NodeNetwork,
    /// The addresses that Services of type LoadBalancer are given, and nodes of the same network answer for: CIDRs with commas
    /// between them.
    #[arg(long, value_name = "CIDR")]
    pub load_balancer_pool: Option<String>,
    /// How this node is set up: Kubernetes' own `KubeletConfiguration`.
    #[arg(long)]
    pub kubelet_config: Option<PathBuf>,
    /// The addresses by which others reach this node, at most one per family; those of the default routes where they are not given.
    #[arg(long, value_delimiter = ',', value_name = "IP")]
    pub node_ip: Vec<IpAddr>,
    /// The cluster's addresses.
    #[command(flatten)]
    pub cluster_network: ClusterNetworkOptions,
    /// The pod network.
    #[command(flatten)]
    pub cni: CniOptions,
    /// Services.
    #[command(flatten)]
    pub proxy: ServiceProxyOptions,
    /// Container runtimes.
    #[command(flatten)]
    pub runtime: RuntimeOptions,
    /// The kubelet.
    #[command(flatten)]
    pub kubelet: KubeletOptions,
    /// How the API server is run.
    #[command(flatten)]
    pub api: ApiOptions,
    /// The data.
    #[command(flatten)]
    pub datastore: DatastoreOptions,
}

/// How a node joins.
#[derive(Args, Clone)]
pub struct AgentOptions {
    /// The cluster's API, for example `https://192.0.2.10:6443`.
    #[arg(long)]
    pub server: String,
    /// What `navarch token` prints on the server; needed until this machine has its certificates.
    #[arg(long)]
    pub token: Option<String>,
    /// A file with the token: command lines are seen by every user of a machine.
    #[arg(long, conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The node's folder: certificates, images, logs.
    #[arg(long, default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// The node's name; the host's name in lower case where it is not given.
    #[arg(long)]
    pub node_name: Option<String>,
    /// The addresses by which others reach this node, at most one per family; those of the default routes where they are not given.
    #[arg(long, value_delimiter = ',', value_name = "IP")]
    pub node_ip: Vec<IpAddr>,
    /// Mirrors, credentials and authorities of image registries, in the form of k3s's `registries.yaml`.
    #[arg(long, default_value = REGISTRIES)]
    pub private_registry: PathBuf,
    /// How packets reach the pods of other nodes.
    #[arg(long, value_enum, default_value = "vxlan")]
    pub node_network: NodeNetwork,
    /// How this node is set up: Kubernetes' own `KubeletConfiguration`.
    #[arg(long)]
    pub kubelet_config: Option<PathBuf>,
    /// The pod network.
    #[command(flatten)]
    pub cni: CniOptions,
    /// Services.
    #[command(flatten)]
    pub proxy: ServiceProxyOptions,
    /// Container runtimes.
    #[command(flatten)]
    pub runtime: RuntimeOptions,
    /// The kubelet.
    #[command(flatten)]
    pub kubelet: KubeletOptions,
}

/// Pod networks of others.
#[derive(Args, Clone)]
pub struct CniOptions {
    /// Connects pods by CNI plugins in the place of our network: the folder with their configuration, of which the first file
    /// by name counts, for example `/etc/cni/net.d`.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins are.
    #[arg(
        long,
        value_name = "DIR",
        value_delimiter = ',',
        default_value = "/opt/cni/bin",
        requires = "cni_conf_dir"
    )]
    pub cni_bin_dir: Vec<PathBuf>,
}

/// What kubelets take on their command line.
#[derive(Args, Clone)]
pub struct KubeletOptions {
    /// Files, and those of folders in it, that change the `KubeletConfiguration`, each what those before it by name left; their
    /// names end in `.conf`.
    #[arg(long, value_name = "DIR")]
    pub kubelet_config_dir: Option<PathBuf>,
    /// Labels that the Node is made with, commas between them. Of `kubernetes.io` and `k8s.io` those only that a kubelet may set.
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', value_parser = node_label)]
    pub node_labels: Vec<(String, String)>,
    /// Whether the kubelet makes its Node; where not, it waits for somebody else's. In the place of KubeletConfiguration's
    /// `registerNode`.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub register_node: Option<bool>,
    /// Programs that give credentials for images: Kubernetes' own `CredentialProviderConfig`, or a folder of such files.
    #[arg(long, value_name = "PATH", requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Where these programs are.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
}

impl KubeletOptions {
    /// Where the programs that give credentials are.
    pub fn credential_providers(&self) -> Option<kubelet::credential_providers::Place> {
        Some(kubelet::credential_providers::Place {
            configuration: self.image_credential_provider_config.clone()?,
            programs: self.image_credential_provider_bin_dir.clone()?,
        })
    }
}

fn node_label(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("malformed pair, expect string=string: {text}"))?;
    let (name, value) = (name.trim(), value.trim());
    api::node_labels::check(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Container runtimes of others.
#[derive(Args, Clone)]
pub struct RuntimeOptions {
    /// The program that runs the pods of RuntimeClasses with this handler, an OCI runtime; may be repeated. crun, runc and
    /// youki are handlers by these names where they are installed.
    #[arg(long, value_name = "NAME=PROGRAM", value_parser = handler)]
    pub runtime_handler: Vec<(String, PathBuf)>,
    /// Where vendors describe devices (CDI), in the place of /etc/cdi and /var/run/cdi; may be repeated, the last one wins.
    #[arg(long, value_name = "DIR")]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Runs pods by another container runtime than the one inside: `unix:///run/containerd/containerd.sock`. Its CNI plugins
    /// connect them then.
    #[arg(long, value_name = "ENDPOINT", conflicts_with_all = ["runtime_handler", "cdi_spec_dir", "cni_conf_dir"])]
    pub container_runtime_endpoint: Option<String>,
}

fn handler(text: &str) -> Result<(String, PathBuf), String> {
    let (name, program) = text.split_once('=').ok_or("a handler is NAME=PROGRAM")?;
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.bytes().next(), name.bytes().last()];
    let plain = name.len() <= 63 && name.bytes().all(|byte| letter(byte) || byte == b'-');
    if !plain || !ends.iter().all(|end| end.is_some_and(letter)) {
        return Err(format!("{name:?} is no handler's name: lower case letters, digits and '-'"));
    }
    match program.starts_with('/') {
        true => Ok((name.to_owned(), program.into())),
        false => Err(format!("{program:?} is not an absolute path")),
    }
}

/// How packets reach the pods of other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum NodeNetwork {
    /// Always in vxlan.
    Vxlan,
    /// By direct routes to nodes on one of our links, in vxlan to others.
    Auto,
    /// By direct routes only.
    HostGw,
    /// Always encrypted, by WireGuard.
    Wireguard,
}

impl ServerOptions {
    /// The parts that run beside the API.
    pub fn parts(&self) -> BTreeSet<Part> {
        Part::value_variants().iter().copied().filter(|part| !self.disable.contains(part)).collect()
    }
}

/// A part that can be left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Part {
    /// The control loops.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// This machine as a node: kubelet, container runtime, pod network.
    Agent,
    /// Services.
    Proxy,
    /// Cluster DNS.
    Dns,
}

impl Part {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Controllers => "controllers",
            Self::Scheduler => "scheduler",
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Dns => "dns",
        }
    }
}

/// Who asks a registry. Without a name, the credentials of `registries.yaml` count.
#[derive(Args)]
pub struct Login {
    /// User name at the registry.
    #[arg(long, requires = "password_stdin")]
    pub username: Option<String>,
    /// Reads the password from standard input.
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
}

/// Formats of image archives.
#[derive(Clone, Copy, ValueEnum)]
pub enum ArchiveKind {
    /// OCI image layout.
    Oci,
    /// As `docker save` writes it.
    Docker,
}

/// What to do with images.
#[derive(Subcommand)]
pub enum ImageAction {
    /// Takes in OCI and docker archives (`.tar`, `.tar.gz`).
    Import {
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Packs this program as an image, so that something can run where no registry is reachable.
    #[command(hide = true)]
    ImportSelf {
        /// The image's name.
        reference: String,
    },
    /// Pulls an image from its registry, or brings it up to date; what a broken pull has is kept for the next.
    Pull {
        /// The image's name.
        image: String,
        #[command(flatten)]
        login: Login,
    },
    /// Puts an image into a registry.
    Push {
        /// The image's name, digest or id.
        image: String,
        /// The name it gets there; its own without one.
        to: Option<String>,
        #[command(flatten)]
        login: Login,
    },
    /// Writes images to an archive.
    Export {
        /// Names, digests or ids.
        #[arg(required = true)]
        images: Vec<String>,
        /// The archive, which must not exist.
        #[arg(long, short)]
        output: PathBuf,
        /// What it can be read by.
        #[arg(long, value_enum, default_value_t = ArchiveKind::Oci)]
        format: ArchiveKind,
    },
    /// Lists the images.
    List,
    /// Shows all that is known of images, as JSON.
    Inspect {
        /// Names, digests or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Removes the images that no container uses.
    Prune,
    /// Removes images.
    Remove {
        /// Names, digests or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// What to do about encryption at rest.
#[derive(Subcommand, Clone, Copy)]
pub enum EncryptionAction {
    /// Says which keys there are and how many values each has sealed.
    Status,
    /// Makes a new key, rewrites everything with it and retires the old one.
    Rotate,
    /// Reads the configuration again and rewrites what its first provider would seal differently.
    Reencrypt,
}

/// How the small web server runs.
#[derive(Args)]
pub struct WebOptions {
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The file with the page; read at every request, so that a changed ConfigMap shows.
    #[arg(long)]
    pub page: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_in_force_without_secrets() {
        let line = "navarch agent --server https://192.0.2.1:6443 --token abc --node-ip 192.0.2.7,fd00::7";
        let flags = flags_of(line.split(' '));
        let shown = |name: &str| flags.get(name).map(String::as_str);
        assert_eq!(shown("node-ip"), Some("192.0.2.7,fd00::7"));
        assert_eq!(shown("data-dir"), Some(DATA_DIR));
        assert_eq!(shown("token"), Some("CLASSIFIED"));
        assert_eq!(shown("kubelet-config"), None);
    }

    #[test]
    fn a_node_is_told_its_labels_and_whether_it_makes_itself_known() {
        let parse = |more: &str| {
            let line = format!("navarch agent --server https://192.0.2.1:6443 {more}");
            match Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command) {
                Ok(Command::Agent(options)) => Ok(options.kubelet),
                Ok(_) => unreachable!("another command"),
                Err(error) => Err(error.to_string()),
            }
        };
        let told = parse("--node-labels pool=a,empty= --register-node=false").unwrap();
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(told.node_labels, [label("pool", "a"), label("empty", "")]);
        assert_eq!(told.register_node, Some(false));
        assert_eq!(parse("").unwrap().register_node, None);
        let fails = |more: &str, why: &str| {
            let error = parse(more).err().unwrap_or_default();
            assert!(error.contains(why), "{more}: {error}");
        };
        fails(
            "--node-labels node-role.kubernetes.io/x=",
            "specified with --node-labels: [node-role.kubernetes.io/x]",
        );
        fails("--node-labels pool", "malformed pair, expect string=string: pool");
        fails("--image-credential-provider-config /x", "--image-credential-provider-bin-dir");
    }
}
