//! What a signing request asks for, and what each built-in signer accepts.
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

/// Signers of Kubernetes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// Clients of the API server.
    Client,
    /// Kubelets as clients of the API server.
    KubeletClient,
    /// Kubelets as servers.
    KubeletServing,
    /// Of requests that were made before signers had names.
    LegacyUnknown,
}

const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";

impl Signer {
    const ALL: [Self; 4] = [Self::Client, Self::KubeletClient, Self::KubeletServing, Self::LegacyUnknown];

    /// The `signerName`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client",
            Self::KubeletClient => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::KubeletServing => "kubernetes.io/kubelet-serving",
            Self::LegacyUnknown => "kubernetes.io/legacy-unknown",
        }
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Whether it signs this; if not, why it never will.
    pub(super) fn accepts(self, request: &Request, usages: &[String]) -> Result<(), String> {
        match self {
            Self::Client => client_usages(usages),
            Self::KubeletClient => request.is_kubelet_client(usages),
            Self::KubeletServing => request.is_kubelet_serving(usages),
            Self::LegacyUnknown => Ok(()),
        }
    }
}

fn client_usages(usages: &[String]) -> Result<(), String> {
    const CLIENT: &str = "client auth";
    let optional = ["digital signature", "key encipherment"];
    match usages.iter().find(|u| *u != CLIENT && !optional.contains(&u.as_str())) {
        Some(usage) => Err(format!("invalid usage for client certificate: {usage}")),
        None if usages.iter().any(|u| u == CLIENT) => Ok(()),
        None => Err(format!("missing required usage for client certificate: {CLIENT}")),
    }
}

/// The names of a request by kind, and its parts as they are to stand in a certificate.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) common_name: Option<String>,
    organizations: Vec<String>,
    dns: usize,
    addresses: usize,
    emails: usize,
    uris: usize,
    /// The subject, DER.
    pub(super) subject: Vec<u8>,
    /// The public key (SubjectPublicKeyInfo), DER.
    pub(super) public_key: Vec<u8>,
    /// The alternative names (SubjectAltName's GeneralNames) that a certificate takes over, DER.
    pub(super) names: Vec<u8>,
}

impl Request {
    /// From PEM.
    pub(super) fn parse(pem: &[u8]) -> Option<Self> {
        let block = x509_parser::pem::Pem::iter_from_buffer(pem).flatten().next()?;
        let (_, csr) = X509CertificationRequest::from_der(&block.contents).ok()?;
        let info = &csr.certification_request_info;
        let text =
            |name: &x509_parser::x509::AttributeTypeAndValue<'_>| name.as_str().ok().map(str::to_owned);
        let mut request = Self {
            // Of several the last counts, as in Go's pkix.Name.
            common_name: info.subject.iter_common_name().last().and_then(text),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(list) = extension else { continue };
            for name in &list.general_names {
                // Implicit tags of GeneralName, RFC 5280 section 4.2.1.6.
                let (tag, content): (u8, &[u8]) = match name {
                    GeneralName::RFC822Name(email) => {
                        request.emails += 1;
                        (0x81, email.as_bytes())
                    }
                    GeneralName::DNSName(dns) => {
                        request.dns += 1;
                        (0x82, dns.as_bytes())
                    }
                    GeneralName::URI(uri) => {
                        request.uris += 1;
                        (0x86, uri.as_bytes())
                    }
                    GeneralName::IPAddress(address) => {
                        request.addresses += 1;
                        (0x87, address)
                    }
                    _ => continue,
                };
                request.names.extend(super::issue::tagged(tag, content));
            }
        }
        Some(request)
    }

    fn is_node(&self) -> Result<(), String> {
        if self.common_name.as_deref().is_some_and(|n| n.starts_with(NODE)) {
            return Ok(());
        }
        Err(format!("subject common name does not begin with {NODE}"))
    }

    fn is_of_nodes(&self) -> Result<(), String> {
        if self.organizations == [NODES] {
            return Ok(());
        }
        Err("subject organization is not system:nodes".to_owned())
    }

    /// Whether a kubelet may ask this to be a client; if not, why.
    pub(super) fn is_kubelet_client(&self, usages: &[String]) -> Result<(), String> {
        self.is_of_nodes()?;
        for (number, what) in
            [(self.dns, "DNS"), (self.emails, "Email"), (self.addresses, "IP"), (self.uris, "URI")]
        {
            if number > 0 {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        self.is_node()?;
        exact_usages(usages, "client auth")
    }

    /// Whether a kubelet may ask this to be a server; if not, why.
    pub(super) fn is_kubelet_serving(&self, usages: &[String]) -> Result<(), String> {
        self.is_of_nodes()?;
        if self.dns + self.addresses == 0 {
            return Err("at least one DNS or IP subjectAltName is required".to_owned());
        }
        for (number, what) in [(self.emails, "Email"), (self.uris, "URI")] {
            if number > 0 {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        exact_usages(usages, "server auth")?;
        self.is_node()
    }
}

/// Signatures, the role, and for RSA keys the encipherment of keys; nothing else.
fn exact_usages(usages: &[String], role: &str) -> Result<(), String> {
    let mut have: Vec<&str> =
        usages.iter().map(String::as_str).filter(|u| *u != "key encipherment").collect();
    have.sort_unstable();
    have.dedup();
    let mut want = ["digital signature", role];
    want.sort_unstable();
    if have == want {
        return Ok(());
    }
    let mut all = ["digital signature", "key encipherment", role];
    all.sort_unstable();
    Err(format!("usages did not match [{}]", all.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn a_kubelet_asks_for_itself_and_for_nothing_else() {
        let node = || Request {
            common_name: Some("system:node:n1".into()),
            organizations: vec![NODES.into()],
            ..Request::default()
        };
        let client = usages(&["key encipherment", "digital signature", "client auth"]);
        assert_eq!(node().is_kubelet_client(&client), Ok(()));
        assert_eq!(node().is_kubelet_client(&usages(&["digital signature", "client auth"])), Ok(()));
        let refused = |request: Request, list: &[String]| request.is_kubelet_client(list).unwrap_err();
        let texts = [
            refused(Request { organizations: vec![NODES.into(), "x".into()], ..node() }, &client),
            refused(Request { dns: 1, ..node() }, &client),
            refused(Request { common_name: Some("n1".into()), ..node() }, &client),
            refused(node(), &usages(&["digital signature", "server auth"])),
            node().is_kubelet_serving(&client).unwrap_err(),
            Request { addresses: 1, ..node() }.is_kubelet_serving(&client).unwrap_err(),
            client_usages(&usages(&["server auth"])).unwrap_err(),
            client_usages(&usages(&["digital signature"])).unwrap_err(),
        ];
        expect_test::expect![[r#"
            subject organization is not system:nodes
            DNS subjectAltNames are not allowed
            subject common name does not begin with system:node:
            usages did not match [client auth digital signature key encipherment]
            at least one DNS or IP subjectAltName is required
            usages did not match [digital signature key encipherment server auth]
            invalid usage for client certificate: server auth
            missing required usage for client certificate: client auth"#]]
        .assert_eq(&texts.join("\n"));
    }
}
