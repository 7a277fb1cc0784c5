//! The plugin's side: one command per process, from the environment and standard input to standard output.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

use crate::error::{CniError, code};
use crate::result::{Attachment, CniResult, is_identifier, is_link_name};
use crate::version::{CNI_VERSION, Version};

/// What a plugin does. Every operation may be repeated.
#[async_trait]
pub trait Plugin: Sync {
    /// Makes the interface. The answer is this plugin's part; what plugins before it made is put in front of it.
    async fn add(&self, request: &Request) -> Result<CniResult, CniError>;
    /// Takes the interface away; what is gone already is no error.
    async fn del(&self, request: &Request) -> Result<(), CniError>;
    /// The interface stands as ADD made it.
    async fn check(&self, request: &Request) -> Result<(), CniError>;
    /// Takes away what belongs to none of `request.valid`.
    async fn gc(&self, request: &Request) -> Result<(), CniError>;
    /// ADD can succeed.
    async fn status(&self, request: &Request) -> Result<(), CniError>;
}

/// What a plugin is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// The configuration's version.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// Whose interface; its names are checked. Empty for GC and STATUS.
    pub attachment: Attachment,
    /// The network namespace; none when it is gone already (DEL).
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// The configuration as it came.
    pub config: Map<String, Value>,
    /// What the plugins before this one made; for DEL and CHECK what ADD answered in the end.
    pub prev_result: Option<CniResult>,
    /// The attachments that stay (GC).
    pub valid: Vec<Attachment>,
}

/// What goes to standard output, and whether all went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For standard output; empty: nothing.
    pub text: String,
    /// The exit status is 0.
    pub ok: bool,
}

/// Serves the one command that `env` and `stdin` carry.
pub async fn serve(
    plugin: &dyn Plugin,
    env: &(dyn Fn(&str) -> Option<String> + Sync),
    stdin: &[u8],
) -> Answer {
    let mut version = CNI_VERSION.to_owned();
    match run(plugin, env, stdin, &mut version).await {
        Ok(text) => Answer { text, ok: true },
        Err(error) => {
            let mut answer = serde_json::to_value(&error).unwrap_or_default();
            answer["cniVersion"] = version.into();
            Answer { text: format!("{answer:#}\n"), ok: false }
        }
    }
}

/// Environment variables, and the commands that need them.
const NEEDED: [(&str, &[&str]); 4] = [
    ("CNI_CONTAINERID", &["ADD", "DEL", "CHECK"]),
    ("CNI_NETNS", &["ADD", "CHECK"]),
    ("CNI_IFNAME", &["ADD", "DEL", "CHECK"]),
    ("CNI_PATH", &["ADD", "DEL", "CHECK", "GC", "STATUS"]),
];

async fn run(
    plugin: &dyn Plugin,
    env: &(dyn Fn(&str) -> Option<String> + Sync),
    stdin: &[u8],
    answered: &mut String,
) -> Result<String, CniError> {
    let get = |name: &str| env(name).filter(|value| !value.is_empty());
    let command = get("CNI_COMMAND").unwrap_or_default();
    let since = match command.as_str() {
        "" => return Err(environment("required env variables [CNI_COMMAND] missing".to_owned())),
        "ADD" | "DEL" | "VERSION" => Version::V0_3_0,
        "CHECK" => Version::V0_4_0,
        "GC" | "STATUS" => Version::V1_1_0,
        other => return Err(environment(format!("unknown CNI_COMMAND: {other}"))),
    };
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(name, commands)| commands.contains(&command.as_str()) && get(name).is_none())
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(environment(format!("required env variables [{}] missing", missing.join(","))));
    }
    let config: Map<String, Value> = serde_json::from_slice(stdin).map_err(|error| {
        CniError::new(code::DECODING_FAILURE, format!("error unmarshall network config: {error}"))
    })?;
    // a configuration without a version is of the first one
    let said = match config.get("cniVersion") {
        Some(Value::String(said)) if !said.is_empty() => said.as_str(),
        None | Some(Value::String(_)) => "0.1.0",
        Some(_) => return Err(CniError::new(code::DECODING_FAILURE, "cniVersion is no string")),
    };
    if command == "VERSION" {
        let supported = Version::ALL.map(Version::text);
        return Ok(format!("{}\n", json!({"cniVersion": said, "supportedVersions": supported})));
    }
    let version: Version = said.parse().map_err(|error: crate::version::Unknown| CniError {
        code: code::INCOMPATIBLE_VERSION,
        msg: "incompatible CNI versions".to_owned(),
        details: error.to_string(),
    })?;
    version.text().clone_into(answered);
    if version < since {
        return Err(CniError::new(
            code::INCOMPATIBLE_VERSION,
            format!("config version {version} does not allow {command}"),
        ));
    }
    let request = request(&command, version, config, &get)?;
    match command.as_str() {
        "ADD" => {
            let made = plugin.add(&request).await?;
            let result = request.prev_result.unwrap_or_default().append(made);
            return Ok(format!("{:#}\n", result.write(version)));
        }
        "DEL" => plugin.del(&request).await?,
        "CHECK" if request.prev_result.is_none() => {
            return Err(CniError::new(code::INVALID_CONFIG, "required prevResult is missing"));
        }
        "CHECK" => plugin.check(&request).await?,
        "GC" => plugin.gc(&request).await?,
        _ => plugin.status(&request).await?,
    }
    Ok(String::new())
}

fn environment(text: String) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, text)
}

fn request(
    command: &str,
    version: Version,
    config: Map<String, Value>,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<Request, CniError> {
    let invalid = |text: String| CniError::new(code::INVALID_CONFIG, text);
    let network = match config.get("name").and_then(Value::as_str) {
        None | Some("") => return Err(invalid("missing network name".to_owned())),
        Some(name) if !is_identifier(name) => {
            return Err(invalid(format!("invalid characters found in network name: {name:?}")));
        }
        Some(name) => name.to_owned(),
    };
    let of_container = matches!(command, "ADD" | "DEL" | "CHECK");
    let attachment = Attachment {
        container_id: get("CNI_CONTAINERID").filter(|_| of_container).unwrap_or_default(),
        ifname: get("CNI_IFNAME").filter(|_| of_container).unwrap_or_default(),
    };
    if of_container {
        if !is_identifier(&attachment.container_id) {
            return Err(environment(format!(
                "invalid characters in containerID: {:?}",
                attachment.container_id
            )));
        }
        if !is_link_name(&attachment.ifname) {
            return Err(environment(format!("invalid interface name: {:?}", attachment.ifname)));
        }
        if !attachment.is_valid() {
            return Err(environment("the containerID is too long".to_owned()));
        }
    }
    let prev_result = config.get("prevResult").filter(|v| !v.is_null()).map(CniResult::read).transpose()?;
    let valid = match config.get("cni.dev/valid-attachments") {
        Some(list) => serde_json::from_value(list.clone()).map_err(|error| {
            CniError::new(code::DECODING_FAILURE, format!("cni.dev/valid-attachments: {error}"))
        })?,
        // "nothing is valid" must be said
        None if command == "GC" => return Err(invalid("cni.dev/valid-attachments is missing".to_owned())),
        None => Vec::new(),
    };
    Ok(Request {
        version,
        network,
        attachment,
        netns: get("CNI_NETNS").map(PathBuf::from),
        args: arguments(&get("CNI_ARGS").unwrap_or_default())?,
        config,
        prev_result,
        valid,
    })
}

/// `KEY=value;KEY=value`.
fn arguments(text: &str) -> Result<Vec<(String, String)>, CniError> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(environment(format!("CNI_ARGS: invalid pair {pair:?}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Interface, Ip};
    use expect_test::{Expect, expect};

    /// Says what it was asked by what it answers.
    struct Echo;

    #[async_trait]
    impl Plugin for Echo {
        async fn add(&self, request: &Request) -> Result<CniResult, CniError> {
            let interface = Interface { name: request.attachment.ifname.clone(), ..Interface::default() };
            let ip = Ip { address: "10.0.0.2/32".to_owned(), gateway: None, interface: Some(0) };
            Ok(CniResult { interfaces: vec![interface], ips: vec![ip], ..CniResult::default() })
        }

        async fn del(&self, request: &Request) -> Result<(), CniError> {
            Err(CniError::new(100, format!("{:?} {:?}", request.netns, request.args)))
        }

        async fn check(&self, _: &Request) -> Result<(), CniError> {
            Ok(())
        }

        async fn gc(&self, request: &Request) -> Result<(), CniError> {
            Err(CniError::new(101, format!("{:?}", request.valid)))
        }

        async fn status(&self, _: &Request) -> Result<(), CniError> {
            Err(CniError::new(code::NOT_AVAILABLE, "no"))
        }
    }

    async fn check(env: &str, stdin: &str, expect: Expect) {
        let get = |name: &str| {
            env.split(' ')
                .filter_map(|pair| pair.split_once('='))
                .find(|(n, _)| format!("CNI_{n}") == name)
                .map(|(_, v)| v.to_owned())
        };
        let answer = serve(&Echo, &get, stdin.as_bytes()).await;
        let text = match serde_json::from_str::<Value>(&answer.text) {
            Ok(value) => value.to_string(),
            Err(_) => answer.text,
        };
        expect.assert_eq(&format!("{} {text}", if answer.ok { "ok" } else { "failed" }));
    }

    const POD: &str = "CONTAINERID=a NETNS=/n IFNAME=eth0 PATH=/p";

    #[tokio::test]
    async fn what_the_environment_lacks_is_named() {
        let net = r#"{"cniVersion": "1.0.0", "name": "n"}"#;
        check("", net, expect![[r#"failed {"cniVersion":"1.1.0","code":4,"msg":"required env variables [CNI_COMMAND] missing"}"#]]).await;
        check(
            "COMMAND=add",
            net,
            expect![[r#"failed {"cniVersion":"1.1.0","code":4,"msg":"unknown CNI_COMMAND: add"}"#]],
        )
        .await;
        check("COMMAND=ADD", net, expect![[r#"failed {"cniVersion":"1.1.0","code":4,"msg":"required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing"}"#]]).await;
        check("COMMAND=DEL", net, expect![[r#"failed {"cniVersion":"1.1.0","code":4,"msg":"required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing"}"#]]).await;
        check("COMMAND=ADD CONTAINERID=../a NETNS=/n IFNAME=e PATH=/p", net, expect![[r#"failed {"cniVersion":"1.0.0","code":4,"msg":"invalid characters in containerID: \"../a\""}"#]]).await;
        check(
            "COMMAND=ADD CONTAINERID=a NETNS=/n IFNAME=.. PATH=/p",
            net,
            expect![[r#"failed {"cniVersion":"1.0.0","code":4,"msg":"invalid interface name: \"..\""}"#]],
        )
        .await;
        check(
            &format!("COMMAND=ADD {POD} ARGS=a;b"),
            net,
            expect![[r#"failed {"cniVersion":"1.0.0","code":4,"msg":"CNI_ARGS: invalid pair \"a\""}"#]],
        )
        .await;
    }

    #[tokio::test]
    async fn what_the_configuration_lacks_is_named() {
        let add = format!("COMMAND=ADD {POD}");
        check(&add, "{", expect![[r#"failed {"cniVersion":"1.1.0","code":6,"msg":"error unmarshall network config: EOF while parsing an object at line 1 column 1"}"#]]).await;
        check(
            &add,
            r#"{"cniVersion": "1.0.0"}"#,
            expect![[r#"failed {"cniVersion":"1.0.0","code":7,"msg":"missing network name"}"#]],
        )
        .await;
        check(&add, r#"{"cniVersion": "1.0.0", "name": "a/b"}"#, expect![[r#"failed {"cniVersion":"1.0.0","code":7,"msg":"invalid characters found in network name: \"a/b\""}"#]]).await;
        check(&add, r#"{"name": "n"}"#, expect![[r#"failed {"cniVersion":"1.1.0","code":1,"details":"incompatible CNI versions: config is \"0.1.0\", supported are 0.3.0 to 1.1.0","msg":"incompatible CNI versions"}"#]]).await;
        check(&add, r#"{"cniVersion": "1.0.0", "name": "n", "prevResult": []}"#, expect![[r#"failed {"cniVersion":"1.0.0","code":6,"msg":"could not parse prevResult: invalid length 0, expected struct CniResult with 5 elements"}"#]]).await;
    }

    #[tokio::test]
    async fn commands_are_those_of_the_configurations_version() {
        check(
            "COMMAND=VERSION",
            r#"{"cniVersion": "0.4.0"}"#,
            expect![[
                r#"ok {"cniVersion":"0.4.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
            ]],
        )
        .await;
        check(
            &format!("COMMAND=CHECK {POD}"),
            r#"{"cniVersion": "0.3.1", "name": "n"}"#,
            expect![[
                r#"failed {"cniVersion":"0.3.1","code":1,"msg":"config version 0.3.1 does not allow CHECK"}"#
            ]],
        )
        .await;
        check(
            &format!("COMMAND=CHECK {POD}"),
            r#"{"cniVersion": "0.4.0", "name": "n"}"#,
            expect![[r#"failed {"cniVersion":"0.4.0","code":7,"msg":"required prevResult is missing"}"#]],
        )
        .await;
        check(
            "COMMAND=STATUS PATH=/p",
            r#"{"cniVersion": "1.0.0", "name": "n"}"#,
            expect![[
                r#"failed {"cniVersion":"1.0.0","code":1,"msg":"config version 1.0.0 does not allow STATUS"}"#
            ]],
        )
        .await;
        check(
            "COMMAND=STATUS PATH=/p",
            r#"{"cniVersion": "1.1.0", "name": "n"}"#,
            expect![[r#"failed {"cniVersion":"1.1.0","code":50,"msg":"no"}"#]],
        )
        .await;
        check(
            "COMMAND=GC PATH=/p",
            r#"{"cniVersion": "1.1.0", "name": "n"}"#,
            expect![[
                r#"failed {"cniVersion":"1.1.0","code":7,"msg":"cni.dev/valid-attachments is missing"}"#
            ]],
        )
        .await;
        check("COMMAND=GC PATH=/p", r#"{"cniVersion": "1.1.0", "name": "n", "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}]}"#, expect![[r#"failed {"cniVersion":"1.1.0","code":101,"msg":"[Attachment { container_id: \"a\", ifname: \"b\" }]"}"#]]).await;
        check(
            "COMMAND=DEL CONTAINERID=a IFNAME=eth0 PATH=/p ARGS=A=b;C=d=e",
            r#"{"cniVersion": "1.0.0", "name": "n"}"#,
            expect![[
                r#"failed {"cniVersion":"1.0.0","code":100,"msg":"None [(\"A\", \"b\"), (\"C\", \"d=e\")]"}"#
            ]],
        )
        .await;
    }

    #[tokio::test]
    async fn what_earlier_plugins_made_stays_in_front() {
        let before = r#"{"cniVersion": "0.4.0", "name": "n", "prevResult": {"cniVersion": "0.4.0", "interfaces": [{"name": "x"}], "ips": [{"version": "4", "address": "10.9.0.1/24", "interface": 0}]}}"#;
        check(&format!("COMMAND=ADD {POD}"), before, expect![[r#"ok {"cniVersion":"0.4.0","interfaces":[{"name":"x"},{"name":"eth0"}],"ips":[{"address":"10.9.0.1/24","interface":0,"version":"4"},{"address":"10.0.0.2/32","interface":1,"version":"4"}],"routes":[]}"#]]).await;
    }
}
