//! Whom the server takes a caller for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::Options;
use apiserver::options::{OidcFlags, RequestHeader};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use client::Client;
use http::Method;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::cluster::{Cluster, connect, send, send_with, write};
use crate::outside::Outside;

/// Name and groups that the server sees; the code where it refuses.
async fn seen(client: &Client, headers: &[(&str, &str)]) -> String {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (code, _, body) = send_with(client, Method::POST, path, headers, review).await;
    if code != 201 {
        return code.to_string();
    }
    let user = &body["status"]["userInfo"];
    let groups: Vec<&str> = user["groups"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let groups: Vec<&str> = groups.into_iter().filter(|g| *g != "system:authenticated").collect();
    format!("{} {groups:?}", user["username"].as_str().unwrap())
}

#[tokio::test]
async fn a_static_token_is_its_line_s_user() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "tokens.csv", "secret-1,ann,u1,\"dev,ops\"\n\nsecret-2,bob,u2\n");
    let options = Options { token_auth_file: Some(file), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    assert_eq!(seen(&cluster.bearer("secret-1"), &[]).await, r#"ann ["dev", "ops"]"#);
    assert_eq!(seen(&cluster.bearer("secret-2"), &[]).await, "bob []");
    assert_eq!(seen(&cluster.bearer("secret-3"), &[]).await, "401");
}

#[tokio::test]
async fn a_bootstrap_token_lives_and_ends_with_its_secret() {
    let cluster = Cluster::start().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef"}, "stringData": {"token-id": "abcdef",
            "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:workers"}});
    let path = "/api/v1/namespaces/kube-system/secrets";
    cluster.make(path, secret).await;
    let joiner = cluster.bearer("abcdef.0123456789abcdef");
    let expected = r#"system:bootstrap:abcdef ["system:bootstrappers", "system:bootstrappers:workers"]"#;
    assert_eq!(seen(&joiner, &[]).await, expected);
    let patch = json!({"stringData": {"expiration": "2020-01-01T00:00:00Z"}});
    let one = format!("{path}/bootstrap-token-abcdef");
    assert_eq!(send(&cluster.admin, Method::PATCH, &one, patch).await.0, 200);
    assert_eq!(seen(&joiner, &[]).await, "401");
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let cluster = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    cluster.make("/api/v1/namespaces/a/serviceaccounts", account).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}});
    cluster.make("/api/v1/namespaces/a/secrets", secret).await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "b"}}});
    let made = cluster.make("/api/v1/namespaces/a/serviceaccounts/s/token", request.clone()).await;
    let token = made["status"]["token"].as_str().unwrap();
    let holder = cluster.bearer(token);
    assert!(seen(&holder, &[]).await.starts_with("system:serviceaccount:a:s "));
    assert_eq!(
        send(&cluster.admin, Method::DELETE, "/api/v1/namespaces/a/secrets/b", Value::Null).await.0,
        200
    );
    assert_eq!(seen(&holder, &[]).await, "401");
    // for somebody else
    let mut request = request;
    request["spec"] = json!({"audiences": ["vault"]});
    let made = cluster.make("/api/v1/namespaces/a/serviceaccounts/s/token", request).await;
    let token = made["status"]["token"].as_str().unwrap();
    assert_eq!(seen(&cluster.bearer(token), &[]).await, "401");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["vault", "other"]}});
    let review = cluster.make("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(review["status"]["audiences"], json!(["vault"]), "{review}");
}

/// An issuer of ID tokens.
struct Issuer {
    outside: Outside,
    key: EcdsaKeyPair,
}

impl Issuer {
    async fn start() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let point = key.public_key().as_ref().to_vec();
        let url = Arc::new(std::sync::OnceLock::<String>::new());
        let own = url.clone();
        let outside = Outside::start(move |path, _| match path {
            "/.well-known/openid-configuration" => {
                json!({"issuer": own.get(), "jwks_uri": format!("{}/keys", own.get().unwrap())})
            }
            "/keys" => {
                json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "use": "sig",
                "x": B64.encode(&point[1..33]), "y": B64.encode(&point[33..])}]})
            }
            _ => Value::Null,
        })
        .await;
        url.set(outside.url()).unwrap();
        Self { outside, key }
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let now = Timestamp::now().as_second();
        let mut claims = json!({"iss": self.outside.url(), "aud": "cluster", "sub": "ann", "exp": now + 600,
            "groups": ["dev"], "tenant": "x"});
        change(&mut claims);
        let header = json!({"alg": "ES256", "kid": "k"});
        let text = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", B64.encode(signature.as_ref()))
    }
}

#[tokio::test]
async fn an_id_token_is_checked_and_mapped() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let oidc = OidcFlags {
        issuer_url: issuer.outside.url(),
        client_id: "cluster".to_owned(),
        ca_file: Some(write(dir.path(), "issuer.pem", &issuer.outside.ca_pem)),
        groups_claim: "groups".to_owned(),
        groups_prefix: "corp:".to_owned(),
        required_claims: vec!["tenant=x".to_owned()],
        ..OidcFlags::default()
    };
    let cluster = Cluster::in_dir(dir, Options { oidc, ..Options::default() }).await.unwrap();
    let user = async |token: String| seen(&cluster.bearer(&token), &[]).await;
    let good = issuer.token(|_| {});
    assert_eq!(user(good.clone()).await, format!("{}#ann [\"corp:dev\"]", issuer.outside.url()));
    assert_eq!(user(issuer.token(|c| c["aud"] = json!("other"))).await, "401");
    assert_eq!(user(issuer.token(|c| c["exp"] = json!(1))).await, "401");
    assert_eq!(user(issuer.token(|c| c["tenant"] = json!("y"))).await, "401");
    assert_eq!(user(issuer.token(|c| c["iss"] = json!("https://else"))).await, "401");
    let (text, _) = good.rsplit_once('.').unwrap();
    assert_eq!(user(format!("{text}.{}", B64.encode([1_u8; 64]))).await, "401");
}

#[tokio::test]
async fn an_authentication_configuration_names_issuers_and_open_paths() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": {"url": issuer.outside.url(), "certificateAuthority": issuer.outside.ca_pem, "audiences": ["cluster"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": "o:"}, "uid": {"claim": "tenant"}}}],
        "anonymous": {"enabled": true, "conditions": [{"path": "/readyz"}]}});
    let file = write(dir.path(), "authentication.yaml", &config.to_string());
    let options = Options { authentication_config: Some(file), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    assert_eq!(seen(&cluster.bearer(&issuer.token(|_| {})), &[]).await, "o:ann []");
    let nobody = cluster.bearer("");
    assert_eq!(send(&nobody, Method::GET, "/readyz", Value::Null).await.0, 200);
    assert_eq!(send(&nobody, Method::GET, "/version", Value::Null).await.0, 401);
}

#[tokio::test]
async fn expressions_check_claims_and_make_the_user() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": {"url": issuer.outside.url(), "certificateAuthority": issuer.outside.ca_pem, "audiences": ["cluster"]},
            "claimValidationRules": [{"expression": "claims.exp - claims.nbf <= 86400 || !has(claims.nbf)", "message": "too long"},
                {"expression": "claims.tenant == 'x'", "message": "not of the tenant"}],
            "claimMappings": {"username": {"expression": "claims.sub + '@' + claims.tenant"},
                "groups": {"expression": "claims.groups.map(g, 'corp:' + g)"}, "uid": {"expression": "claims.sub"},
                "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}]},
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"},
                {"expression": "user.groups.size() < 3 && user.extra['example.com/tenant'] == ['x']"}]}]});
    let file = write(dir.path(), "authentication.yaml", &config.to_string());
    let options = Options { authentication_config: Some(file), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    let user = async |token: String| seen(&cluster.bearer(&token), &[]).await;
    assert_eq!(user(issuer.token(|_| {})).await, r#"ann@x ["corp:dev"]"#);
    assert_eq!(user(issuer.token(|c| c["tenant"] = json!("y"))).await, "401");
    assert_eq!(user(issuer.token(|c| c["sub"] = json!("system:a"))).await, "401");
    assert_eq!(user(issuer.token(|c| c["groups"] = json!(["a", "b", "c"]))).await, "401");
    assert_eq!(user(issuer.token(|c| c["groups"] = json!([1]))).await, "401");
}

#[tokio::test]
async fn a_wrong_authentication_configuration_names_its_field() {
    for (change, why) in [
        (
            json!({"claimMappings": {"username": {"expression": "claims.email"}}}),
            "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used",
        ),
        (
            json!({"claimMappings": {"username": {"claim": "sub"}}}),
            "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set",
        ),
        (
            json!({"claimMappings": {"username": {"claim": "sub", "prefix": "", "expression": "claims.sub"}}}),
            "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
        ),
        (
            json!({"claimValidationRules": [{"expression": "claims.sub + 1 + user.x"}]}),
            "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.sub + 1 + user.x\": compilation failed",
        ),
        (
            json!({"userValidationRules": [{"expression": "user.username"}]}),
            "jwt[0].userValidationRules[0].expression: Invalid value: \"user.username\": must evaluate to bool",
        ),
        (
            json!({"claimMappings": {"username": {"claim": "sub", "prefix": ""},
                "extra": [{"key": "a.k8s.io/x", "valueExpression": "claims.x"}]}}),
            "jwt[0].claimMappings.extra[0].key: Invalid value: \"a.k8s.io/x\": k8s.io, kubernetes.io",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut jwt = json!({"issuer": {"url": "https://issuer.example", "audiences": ["a"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}}});
        jwt.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [jwt]});
        let file = write(dir.path(), "authentication.yaml", &config.to_string());
        let options = Options { authentication_config: Some(file), ..Options::default() };
        let error = Cluster::in_dir(dir, options).await.err().expect("the server does not start");
        let mut said = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(deeper) = source {
            said.push_str(&format!(": {deeper}"));
            source = deeper.source();
        }
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn a_program_outside_reviews_tokens_and_is_asked_once() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(0)));
    let count = asked.clone();
    let outside = Outside::start(move |_, review| {
        count.fetch_add(1, Ordering::SeqCst);
        let known = review["spec"]["token"] == "known";
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": {"authenticated": known,
            "user": {"username": "ann", "uid": "7", "groups": ["dev"]}}})
    })
    .await;
    let file = outside.kubeconfig(dir.path());
    let options = Options { authentication_token_webhook_config_file: Some(file), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    for _ in 0..3 {
        assert_eq!(seen(&cluster.bearer("known"), &[]).await, r#"ann ["dev"]"#);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(seen(&cluster.bearer("unknown"), &[]).await, "401");
}

#[tokio::test]
async fn the_front_proxy_s_word_counts_behind_its_certificate_only() {
    let dir = tempfile::tempdir().unwrap();
    let proxies = apiserver::Pki::open(&dir.path().join("proxies")).unwrap();
    let requestheader = RequestHeader {
        client_ca_file: Some(write(dir.path(), "proxies.pem", proxies.ca_pem())),
        allowed_names: vec!["proxy".to_owned()],
        ..RequestHeader::default()
    };
    let cluster = Cluster::in_dir(dir, Options { requestheader, ..Options::default() }).await.unwrap();
    let headers = [("x-remote-user", "ann"), ("x-remote-group", "dev"), ("x-remote-extra-a%2fb", "c")];
    let with = |identity: apiserver::Identity| {
        connect(&cluster.api.server, |endpoint| {
            endpoint.cert_pem = identity.cert_pem.into();
            endpoint.key_pem = identity.key_pem.into();
        })
    };
    let proxy = with(proxies.client("proxy", &[]).unwrap());
    assert_eq!(seen(&proxy, &headers).await, r#"ann ["dev"]"#);
    // without its word it is nobody
    assert_eq!(seen(&proxy, &[]).await, "403");
    let other = with(proxies.client("other", &["system:masters"]).unwrap());
    assert_eq!(seen(&other, &headers).await, "403");
    assert_eq!(seen(&cluster.user("bob", &[]), &headers).await, "bob []");
}

#[tokio::test]
async fn who_acts_for_others_needs_the_right_to_each_part() {
    let cluster = Cluster::start().await;
    let grant = async |name: &str, rules: Value| {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
        cluster.make(&format!("{rbac}/clusterroles"), role).await;
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "helper"}]});
        cluster.make(&format!("{rbac}/clusterrolebindings"), binding).await;
    };
    grant(
        "one",
        json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["ann"]},
            {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["dev"]},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/team"], "verbs": ["impersonate"]}]),
    )
    .await;
    let helper = cluster.user("helper", &[]);
    let (user, group) = (("impersonate-user", "ann"), ("impersonate-group", "dev"));
    assert_eq!(seen(&helper, &[user, group, ("impersonate-extra-team", "x")]).await, r#"ann ["dev"]"#);
    for more in
        [("impersonate-group", "system:masters"), ("impersonate-uid", "1"), ("impersonate-extra-other", "x")]
    {
        assert_eq!(seen(&helper, &[user, more]).await, "403", "{more:?}");
    }
    assert_eq!(seen(&helper, &[("impersonate-user", "bob")]).await, "403");
    assert_eq!(seen(&helper, &[group]).await, "400");
    // constrained: bob, and only to list config maps
    grant(
        "two",
        json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "verbs": ["impersonate:user-info"], "resourceNames": ["bob"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["impersonate-on:user-info:list"]}]),
    )
    .await;
    let bob = [("impersonate-user", "bob")];
    let message = async |path: &str| {
        let (code, _, body) = send_with(&helper, Method::GET, path, &bob, Value::Null).await;
        assert_eq!(code, 403);
        body["message"].as_str().unwrap().to_owned()
    };
    assert!(message("/api/v1/namespaces/a/configmaps").await.contains("User \"bob\" cannot list"));
    assert!(message("/api/v1/namespaces/a/secrets").await.contains("User \"helper\" cannot impersonate"));
}
