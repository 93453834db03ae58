//! Rules that the schema can't express, in CEL: evaluated by the API server at `kubectl apply` and offline by [`crate::validate`], from this
//! one table. Each says what is wrong and what to do.
//!
//! The expressions use only what both the API server (Kubernetes 1.29 and newer) and the offline evaluator support. Regular expressions list
//! their characters instead of using `\s` or `\w`, whose meaning differs between the two engines. `quantity(...).isInteger()` is not used:
//! the API server says false for `1.5Gi`. There are no message expressions: the API server estimates one that picks a route from the list at
//! more than a hundred times its budget; [`crate::validate`] finds the exact field instead.

use kube::core::Rule;

/// One rule of the declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CelRule {
    /// CEL over `self` (and `oldSelf`); true means valid.
    pub rule: &'static str,
    /// What is wrong.
    pub problem: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// The field, relative to the type that has the rule; empty for that type itself.
    pub field: &'static str,
}

impl CelRule {
    /// The rule for the CRD.
    pub fn to_kube(&self) -> Rule {
        let rule = Rule::new(self.rule).message(format!("{}: {}", self.problem, self.remedy).as_str());
        if self.field.is_empty() { rule } else { rule.field_path(self.field) }
    }
}

/// Business types that would collide with paths of ours, as a CEL list.
macro_rules! reserved {
    () => {
        "['socket', 'websocket', 'token', 'messages', 'livez', 'readyz', 'healthz', 'metrics', 'configz', 'admin', 'api', 'static', 'wirepost']"
    };
}

macro_rules! rules {
    ($($name:ident { rule: $rule:expr, problem: $problem:expr, remedy: $remedy:expr $(, field: $field:expr)? $(,)? })*) => {
        $(
            #[doc = $remedy]
            pub const $name: CelRule = CelRule {
                rule: $rule,
                problem: $problem,
                remedy: $remedy,
                field: rules!(@or "" $($field)?),
            };
        )*
        /// Every rule.
        pub const ALL: &[CelRule] = &[$($name),*];
    };
    (@or $default:expr) => { $default };
    (@or $default:expr, ) => { $default };
    (@or $default:literal $value:expr) => { $value };
}

rules! {
    // The resource.
    BUSINESS_TYPE_FROM_NAME {
        rule: "has(self.spec.businessType) || self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$')",
        problem: "metadata.name can't serve as the business type",
        remedy: "set spec.businessType to at most 40 of a-z, 0-9 and hyphens, beginning and ending with a letter or digit",
        field: ".spec.businessType",
    }
    RESERVED_NAME {
        rule: concat!("has(self.spec.businessType) || !(self.metadata.name in ", reserved!(), ")"),
        problem: "metadata.name is a path of wirepost's own and can't serve as the business type",
        remedy: "set spec.businessType to another name",
        field: ".spec.businessType",
    }
    BUSINESS_TYPE_IMMUTABLE {
        rule: "(has(self.spec.businessType) ? self.spec.businessType : self.metadata.name) == (has(oldSelf.spec.businessType) ? oldSelf.spec.businessType : oldSelf.metadata.name)",
        problem: "the business type can't be changed, its queues may hold messages",
        remedy: "keep it, or make a new WsBusiness and delete this one when its clients have moved",
        field: ".spec.businessType",
    }

    // The spec.
    BUSINESS_TYPE_SYNTAX {
        rule: "!has(self.businessType) || self.businessType.matches('^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$')",
        problem: "not a business type",
        remedy: "use at most 40 of a-z, 0-9 and hyphens, beginning and ending with a letter or digit",
        field: ".businessType",
    }
    RESERVED_TYPE {
        rule: concat!("!has(self.businessType) || !(self.businessType in ", reserved!(), ")"),
        problem: "this business type is a path of wirepost's own",
        remedy: "choose another name",
        field: ".businessType",
    }
    // In the spec, which the API server does not judge anew while it stays as it is: an older form may be stored.
    ACCEPTS_OTHERS {
        rule: "!has(self.businessType) || !has(self.acceptFrom) || self.acceptFrom.all(a, a.businessType != self.businessType)",
        problem: "acceptFrom names the business itself",
        remedy: "remove it: acceptFrom is for the messages of other businesses",
        field: ".acceptFrom",
    }
    CLIENT_TYPE_SYNTAX {
        rule: "self.all(t, t.matches('^[A-Za-z0-9]([A-Za-z0-9_-]{0,38}[A-Za-z0-9])?$'))",
        problem: "a client type is not well formed",
        remedy: "use at most 40 letters, digits, hyphens and underscores, beginning and ending with a letter or digit",
    }
    FROM_IS_CLIENT_TYPE {
        rule: "self.routes.all(r, !has(r.from) || r.from.all(t, t in self.clientTypes))",
        problem: "a route is from a client type that clientTypes lacks",
        remedy: "add the client type to clientTypes, or correct from",
        field: ".routes",
    }
    TO_IS_CLIENT_TYPE {
        rule: "self.routes.all(r, !has(r.to) || r.to.all(t, t in self.clientTypes))",
        problem: "a route goes to a client type that clientTypes lacks",
        remedy: "add the client type to clientTypes, or correct to",
        field: ".routes",
    }
    TOKEN_CLIENT_TYPE {
        rule: "!has(self.auth) || !has(self.auth.jwt) || has(self.auth.jwt.clientTypes) || size(self.clientTypes) == 1 || (has(self.auth.jwt.claims) && has(self.auth.jwt.claims.clientType))",
        problem: "nothing says which client type the holder of a token is",
        remedy: "set claims.clientType to the claim that has it, or list in auth.jwt.clientTypes what the holder of a token may be",
        field: ".auth.jwt",
    }
    TOKEN_CLIENT_TYPE_IS_DECLARED {
        rule: "!has(self.auth) || !has(self.auth.jwt) || !has(self.auth.jwt.clientTypes) || self.auth.jwt.clientTypes.all(t, t in self.clientTypes)",
        problem: "auth.jwt.clientTypes has a client type that clientTypes lacks",
        remedy: "add the client type to clientTypes, or correct auth.jwt.clientTypes",
        field: ".auth.jwt.clientTypes",
    }
    RECEIPTS_WITHIN_NEEDS_DURABLE {
        rule: "!has(self.push) || !has(self.push.delivery) || self.push.delivery != 'Transient' || self.routes.all(r, !has(r.receiptsWithinSeconds))",
        problem: "a route has receiptsWithinSeconds, and nothing keeps Transient pushes until then",
        remedy: "remove receiptsWithinSeconds, or use push.delivery: Durable",
        field: ".routes",
    }
    RECEIPTS_WITHIN_RETENTION {
        rule: "!has(self.push) || !has(self.push.retention) || !has(self.push.retention.seconds) || self.routes.all(r, !has(r.receiptsWithinSeconds) || r.receiptsWithinSeconds < self.push.retention.seconds)",
        problem: "a route's receiptsWithinSeconds is not shorter than push.retention.seconds, so its pushes may be gone before they are judged",
        remedy: "shorten receiptsWithinSeconds, or keep pushes longer",
        field: ".routes",
    }
    ACCEPT_FROM_SYNTAX {
        rule: "self.matches('^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$')",
        problem: "acceptFrom names something that is not a business type",
        remedy: "name a business type: at most 40 of a-z, 0-9 and hyphens",
    }
    ACCEPTED_TYPE_SYNTAX {
        rule: "self.all(t, t.matches('^([*]|#|[^.*#\\\\x00-\\\\x20\\\\x7f]+)([.]([*]|#|[^.*#\\\\x00-\\\\x20\\\\x7f]+))*$'))",
        problem: "acceptFrom has something that is not a message type",
        remedy: "write words divided by single dots, without spaces; * and # stand alone as a word",
    }
    TRANSIENT_KEEPS_NOTHING {
        rule: "self.delivery != 'Transient' || !has(self.retention)",
        problem: "Transient pushes are not kept, a retention means nothing",
        remedy: "remove retention, or use delivery: Durable",
        field: ".retention",
    }
    RETENTION_BYTES {
        rule: "self.matches('^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$') && quantity(self).compareTo(quantity('100k')) >= 0 && quantity(self).compareTo(quantity('1Ti')) <= 0",
        problem: "not a size from 100k to 1Ti",
        remedy: "write a whole number with a unit, such as 500Mi or 1Gi",
    }
    QUEUE_BYTES {
        rule: "self.matches('^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$') && quantity(self).compareTo(quantity('100k')) >= 0 && quantity(self).compareTo(quantity('1Ti')) <= 0",
        problem: "not a size of a queue: from 100k to 1Ti",
        remedy: "write a whole number with a unit, such as 500Mi or 1Gi",
    }
    SECRET_NAME {
        rule: "self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')",
        problem: "not a name for a Secret",
        remedy: "use a-z, 0-9, hyphens and dots, beginning and ending with a letter or digit",
    }

    // A route.
    MESSAGE_TYPE_SYNTAX {
        rule: "self.matches('^([*]|#|[^.*#\\\\x00-\\\\x20\\\\x7f]+)([.]([*]|#|[^.*#\\\\x00-\\\\x20\\\\x7f]+))*$')",
        problem: "not a message type",
        remedy: "write words divided by single dots, without spaces; * and # stand alone as a word",
    }
    MESSAGE_TYPE_BYTES {
        rule: "bytes(self).size() <= 200",
        problem: "the message type is longer than 200 bytes",
        remedy: "shorten it",
    }
    CLIENT_TO_SERVER_NEEDS_QUEUE {
        rule: "self.sendType != 'ClientToServer' || has(self.queue)",
        problem: "a ClientToServer route needs a queue, else no service would get the message",
        remedy: "add queue: {name: ...}",
        field: ".queue",
    }
    SERVER_TO_CLIENT_NEEDS_TO {
        rule: "self.sendType != 'ServerToClient' || has(self.to)",
        problem: "a ServerToClient route needs to",
        remedy: "list the client types that may get the message",
        field: ".to",
    }
    CLIENT_TO_CLIENT_NEEDS_FROM {
        rule: "self.sendType != 'ClientToClient' || has(self.from)",
        problem: "a ClientToClient route needs from",
        remedy: "list the client types that may send the message",
        field: ".from",
    }
    CLIENT_TO_CLIENT_NEEDS_TO {
        rule: "self.sendType != 'ClientToClient' || has(self.to)",
        problem: "a ClientToClient route needs to",
        remedy: "list the client types that may get the message",
        field: ".to",
    }
    QUEUE_IS_FOR_CLIENT_TO_SERVER {
        rule: "self.sendType == 'ClientToServer' || !has(self.queue)",
        problem: "queue is for ClientToServer only, pushes go through the push exchange",
        remedy: "remove queue, or add a ClientToServer route",
        field: ".queue",
    }
    SERVER_TO_CLIENT_HAS_NO_FROM {
        rule: "self.sendType != 'ServerToClient' || !has(self.from)",
        problem: "from means nothing on a ServerToClient route, the business sends it",
        remedy: "remove from, or use ClientToClient",
        field: ".from",
    }
    CLIENT_TO_SERVER_HAS_NO_TO {
        rule: "self.sendType != 'ClientToServer' || !has(self.to)",
        problem: "to means nothing on a ClientToServer route, the queue gets it",
        remedy: "remove to, or use ClientToClient",
        field: ".to",
    }
    TTL_IS_FOR_PUSHES {
        rule: "self.sendType != 'ClientToServer' || !has(self.ttlSeconds)",
        problem: "ttlSeconds is for messages to clients",
        remedy: "use queue.messageTtlSeconds to bound the time in the queue",
        field: ".ttlSeconds",
    }
    AUDIENCE_IS_FOR_PUSHES {
        rule: "self.sendType != 'ClientToServer' || !has(self.audience) || self.audience == 'Addressed'",
        problem: "audience is for messages to clients",
        remedy: "remove audience",
        field: ".audience",
    }
    RECEIPTS_ARE_FOR_SERVER_TO_CLIENT {
        rule: "self.sendType == 'ServerToClient' || !has(self.receipts) || !self.receipts",
        problem: "receipts tell the business of its own messages, so they are for ServerToClient only",
        remedy: "remove receipts",
        field: ".receipts",
    }
    RECEIPTS_WITHIN_NEEDS_RECEIPTS {
        rule: "!has(self.receiptsWithinSeconds) || (has(self.receipts) && self.receipts)",
        problem: "receiptsWithinSeconds waits for receipts, and the route asks for none",
        remedy: "set receipts: true, or remove receiptsWithinSeconds",
        field: ".receiptsWithinSeconds",
    }
    VALIDATE_IS_FOR_SERVER_TO_CLIENT {
        rule: "self.sendType == 'ServerToClient' || !has(self.validate) || self.validate == 'Http'",
        problem: "validate is for ServerToClient only, what clients send is always judged by the schema",
        remedy: "remove validate",
        field: ".validate",
    }
    VALIDATE_NEEDS_SCHEMA {
        rule: "!has(self.validate) || self.validate == 'Http' || has(self.schema)",
        problem: "validate: Always needs a schema to judge by",
        remedy: "add schema, or remove validate",
        field: ".validate",
    }

    // A queue.
    QUEUE_NAME_SYNTAX {
        rule: "(has(self.existing) && self.existing) || self.name.matches('^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$')",
        problem: "not a queue name",
        remedy: "use at most 64 of a-z, 0-9, hyphens and underscores without dots, or existing: true for a queue of your own",
        field: ".name",
    }
    EXISTING_QUEUE_NAME {
        rule: "!has(self.existing) || !self.existing || !(self.name.startsWith('wirepost.') || self.name.startsWith('amq.'))",
        problem: "an existing queue must be your own, wirepost. and amq. names are not",
        remedy: "name a queue of your own, or remove existing",
        field: ".name",
    }
    EXISTING_QUEUE_HAS_NO_SETTINGS {
        rule: "!has(self.existing) || !self.existing || !(has(self.maxLength) || has(self.maxLengthBytes) || has(self.messageTtlSeconds) || has(self.deliveryLimit))",
        problem: "the settings of an existing queue are its owner's",
        remedy: "remove maxLength, maxLengthBytes, messageTtlSeconds and deliveryLimit, or remove existing",
        field: ".existing",
    }

    // Who is let in.
    ORIGIN_SYNTAX {
        // The second kind is apps': capacitor://localhost, chrome-extension://…, app://-, file://. No page has the schemes at the end.
        rule: "self.all(o, o == '*' || o == 'null' || o.matches('^[Hh][Tt][Tt][Pp][Ss]?://([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\\\\x5b[0-9A-Fa-f:.]+\\\\x5d)(:([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?/?$') || (o.matches('^[A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9._-]+(:([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?)?/?$') && !o.matches('^([Hh][Tt][Tt][Pp]|[Ww][Ss]|[Ff][Tt][Pp])[Ss]?:')))",
        problem: "an origin is not well formed",
        remedy: "write scheme, host and port as the browser sends them, such as https://shop.example, http://localhost:3000 or capacitor://localhost, without a path",
    }
    ONE_KEY_SOURCE {
        rule: "has(self.uri) != has(self.inline)",
        problem: "jwks needs exactly one of uri and inline",
        remedy: "keep one of them",
    }
    KEY_URI {
        rule: "self.matches('^(https://[^/?#@\\x00-\\x20]+|http://(localhost|127[.]0[.]0[.]1|[a-z0-9.-]+[.]svc|[a-z0-9.-]+[.]svc[.]cluster[.]local)(:[0-9]{1,5})?)([/?][^\\x00-\\x20]*)?$')",
        problem: "keys must come from an https address, or over http from this machine or a Service of the cluster",
        remedy: "write an https address without a user, such as https://id.example/.well-known/jwks.json",
    }
    DISCOVERED_ISSUER {
        rule: "has(self.jwks) || self.issuer.matches('^(https://[^/?#@\\x00-\\x20]+|http://(localhost|127[.]0[.]0[.]1|[a-z0-9.-]+[.]svc|[a-z0-9.-]+[.]svc[.]cluster[.]local)(:[0-9]{1,5})?)(/[^?#\\x00-\\x20]*)?$')",
        problem: "without jwks the issuer must be an https address, so that its keys can be discovered there",
        remedy: "write the issuer as its tokens name it, such as https://id.example, or add jwks",
        field: ".issuer",
    }
}
