//! What is read, what is refused, and what programs are asked.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n";

/// A provider with more fields.
fn provider(more: &str) -> String {
    format!(
        "{HEAD}providers:\n- name: p\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
         matchImages: ['*.k.io']\n  defaultCacheDuration: 1h\n{more}"
    )
}

#[test]
fn what_cannot_hold_is_refused() {
    let check = |text: &str, why: &str| {
        let error = configuration::parse(text.as_bytes()).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    };
    assert!(configuration::parse(provider("").as_bytes()).is_ok());
    check(&HEAD.replace("/v1", "/v2"), "is not a kubelet.config.k8s.io/v1 CredentialProviderConfig");
    check(&provider("  matchImage: []"), "unknown field `matchImage`");
    check(&provider("").replace("name: p", "name: a/b"), "cannot contain '/'");
    check(&provider("").replace("name: p", "name: .."), "cannot be '..'");
    check(&provider("").replace("k8s.io/v1\n  match", "k8s.io/v3\n  match"), "apiVersion: Unsupported value");
    check(&provider("").replace("['*.k.io']", "[]"), "at least 1 item in matchImages is required");
    check(&provider("").replace("*.k.io", "k.io:x/y"), "match image is invalid");
    check(&provider("").replace("  defaultCacheDuration: 1h\n", ""), "defaultCacheDuration: Required value");
    check(&provider("").replace("1h", "-1h"), "defaultCacheDuration: Invalid value: \"-1h\"");
    let attributes = |fields: &str, why: &str| {
        check(&provider(&format!("  tokenAttributes: {{{fields}}}")), why);
    };
    let whole = "serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: false";
    attributes(&whole.replace("Audience: a", "Audience: ''"), "serviceAccountTokenAudience: Required value");
    attributes(&whole.replace("cacheType: Token, ", ""), "cacheType: Required value");
    attributes(&whole.replace("Token,", "Pod,"), "unknown variant `Pod`");
    attributes("serviceAccountTokenAudience: a", "requireServiceAccount: Required value");
    attributes(
        &format!("{whole}, requiredServiceAccountAnnotationKeys: [k]"),
        "requireServiceAccount cannot be false",
    );
    let required = whole.replace("false", "true");
    let keys = |text: &str, why: &str| attributes(&format!("{required}, {text}"), why);
    keys("optionalServiceAccountAnnotationKeys: [a b]", "Invalid value: \"a b\"");
    keys("optionalServiceAccountAnnotationKeys: [a, a]", "Duplicate value: \"a\"");
    keys(
        "requiredServiceAccountAnnotationKeys: [a], optionalServiceAccountAnnotationKeys: [a]",
        "cannot be both required and optional",
    );
    let old = provider(&format!("  tokenAttributes: {{{whole}}}")).replace("v1\n  match", "v1beta1\n  match");
    check(&old, "tokenAttributes is only supported for credentialprovider.kubelet.k8s.io/v1");
}

#[test]
fn settings_show_variables_without_their_values() {
    let read = configuration::parse(provider("  env: [{name: KEY, value: hidden}]\n").as_bytes()).unwrap();
    let shown = format!("{read:?}");
    assert!(shown.contains(r#"Variable { name: "KEY", .. }"#) && !shown.contains("hidden"), "{shown}");
}

#[test]
fn the_files_of_a_folder_count_together() {
    let folder = tempfile::tempdir().unwrap();
    let read = || configuration::read(folder.path());
    assert!(read().unwrap_err().to_string().contains("no configuration files found"));
    std::fs::write(folder.path().join("b.yaml"), provider("")).unwrap();
    std::fs::write(folder.path().join("a.yml"), provider("").replace("name: p", "name: q")).unwrap();
    std::fs::write(folder.path().join("c.txt"), "no").unwrap();
    let (found, digest) = read().unwrap();
    assert_eq!(found.into_iter().map(|settings| settings.name).collect::<Vec<_>>(), ["q", "p"]);
    let whole: Vec<u8> = ["a.yml", "b.yaml"]
        .into_iter()
        .map(|file| std::fs::read(folder.path().join(file)).unwrap())
        .flat_map(|text| [&(text.len() as u64).to_be_bytes()[..], &text].concat())
        .collect();
    assert_eq!(digest, format!("sha256:{}", sha256(whole)));
    std::fs::write(folder.path().join("c.json"), provider("")).unwrap();
    assert!(read().unwrap_err().to_string().contains("duplicate provider name \"p\""));
}

/// Makes a program `p` in `folder`, a shell script.
fn program(folder: &Path, script: &str, more: &str) -> Program {
    let file = folder.join("p");
    testkit::executable(&file, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    let settings = configuration::parse(provider(more).as_bytes()).unwrap().remove(0);
    Program::find(folder, &settings).unwrap()
}

#[tokio::test]
async fn a_program_is_asked_by_its_input_and_answers_by_its_output() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "cat > {0}/asked; echo \"$1 $USER_NAME $PATH\" > {0}/seen\n\
         echo '{{\"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"kind\": \"CredentialProviderResponse\",\n\
         \"cacheKeyType\": \"Registry\", \"cacheDuration\": \"5m0s\",\n\
         \"auth\": {{\"*.k.io\": {{\"username\": \"me\", \"password\": \"pw\"}}}}}}'",
        folder.path().display()
    );
    let more = "  args: [get]\n  env: [{name: USER_NAME, value: me}]\n";
    let asked = program(folder.path(), &script, more);
    let annotations = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let said = asked.ask("a.k.io/app", "token", Some(&annotations)).await.unwrap();
    assert_eq!(
        (said.cache_key_type, said.cache_duration),
        (CacheKeyType::Registry, Some(Duration::from_secs(300)))
    );
    let auth = &said.auth["*.k.io"];
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "pw"));
    let request: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("asked")).unwrap()).unwrap();
    let expected = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": "a.k.io/app", "serviceAccountToken": "token", "serviceAccountAnnotations": {"k": "v"}});
    assert_eq!(request, expected);
    let seen = std::fs::read_to_string(folder.path().join("seen")).unwrap();
    assert_eq!(seen.trim(), format!("get me {}", std::env::var("PATH").unwrap()), "the kubelet's own, too");
}

#[tokio::test]
async fn a_program_that_fails_or_says_something_else_gives_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let right = "{\"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \
                 \"kind\": \"CredentialProviderResponse\", \"cacheKeyType\": \"Image\"}";
    for (script, gives) in [
        (format!("echo '{right}'"), true),
        (format!("echo '{right}'; exit 3"), false),
        (format!("echo '{}'", right.replace("/v1", "/v1beta1")), false),
        (format!("echo '{}'", right.replace("Response", "Request")), false),
        (format!("echo '{}'", right.replace("Image", "Pod")), false),
        (format!("echo '{}'", right.replace("\"Image\"", "\"Image\", \"more\": 1")), false),
        ("head -c 3000000 /dev/zero".to_owned(), false),
        ("kill -9 $$".to_owned(), false),
    ] {
        let asked = program(folder.path(), &script, "");
        assert_eq!(asked.ask("a.k.io/app", "", None).await.is_some(), gives, "{script}");
    }
    std::fs::set_permissions(folder.path().join("p"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let settings = configuration::parse(provider("").as_bytes()).unwrap().remove(0);
    let error = Program::find(folder.path(), &settings).err().unwrap().to_string();
    assert!(error.contains("did not exist"), "{error}");
}
