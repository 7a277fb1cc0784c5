//! The authorizer as expressions see it: questions for the user of a request, or for a service account.

use std::sync::Arc;

use crate::auth::UserInfo;
use crate::auth::authorize::{Attributes, Authorizer, Decision};
use crate::cel::{Answers, Question};
use crate::watch_cache::WatchCache;

/// Answers for one user.
pub struct ForUser {
    authorizer: Authorizer,
    user: UserInfo,
}

impl ForUser {
    /// For `user`, from the roles in `cache`.
    pub fn new(cache: Arc<WatchCache>, user: UserInfo) -> Self {
        Self { authorizer: Authorizer::new(cache), user }
    }
}

impl Answers for ForUser {
    fn ask(&self, question: &Question) -> (bool, String) {
        let account = question.service_account.as_ref().map(|(namespace, name)| {
            let of_namespace = format!("system:serviceaccounts:{namespace}");
            let groups = ["system:serviceaccounts", of_namespace.as_str()];
            UserInfo::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups)
        });
        let resource = match question.subresource.as_str() {
            "" => question.resource.clone(),
            sub => format!("{}/{sub}", question.resource),
        };
        // selectors say something of collections only
        let selects = matches!(question.verb.as_str(), "list" | "watch" | "deletecollection");
        let selector = |given: &'_ str| if selects { given.to_owned() } else { String::new() };
        let (fields, labels) = (selector(&question.field_selector), selector(&question.label_selector));
        let attributes = Attributes {
            field_selector: &fields,
            label_selector: &labels,
            verb: &question.verb,
            group: &question.group,
            resource,
            namespace: &question.namespace,
            name: &question.name,
            path: question.path.as_deref(),
            ..Attributes::default()
        };
        match self.authorizer.decide(account.as_ref().unwrap_or(&self.user), &attributes) {
            Decision::Allowed(why) => (true, why),
            Decision::Denied(why) | Decision::NoOpinion(why) => (false, why),
        }
    }
}
