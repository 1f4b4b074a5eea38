use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prometheus::Registry;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::super::jwks::Origin;
use super::*;
use crate::config::auth::Jwks;

/// The modulus of an RSA key that nobody has any more, and two tokens that it signed, good until 2100.
const MODULUS: &str = concat!(
    "qivcDzWfVvwQqvm77ZOe42lvyRn5BO_nhLJVFPn4MXGAXbuf9qb_yzlUj1Ig1laKr4x1OqNZi_Z58d5Os5rD_FbdvP",
    "U0EoPsnm1ldXYcxeoV-HFCf1fadEvIp7g-M4wrP5p0F6hgImaE8OovQ9pUgicn1MHAAH4aBBA1y7VZ4f3uwb4m9pHM",
    "16OW3GnWN2eEffzhWu0ViHt9nKVjpXuty_gxdWZYEK_Rz1XLY1iT48Q7J2YoJw6tE3hb40F5aRLsAq0yof5znxwxsa",
    "NBhxYRdnGW88HB6WqBlb0-VSe66XX0_vnli0NtQh3giK8vasoUJ18BuAcz1qqGJ4U99tE4mw",
);
const RS256: &str = concat!(
    "eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInIifQ.eyJpc3MiOiAiaHR0cHM6Ly9pZC5leGFtcGxlIiwgImF1ZCI6ICJ",
    "taWxscmFjZSIsICJzdWIiOiAiYWxpY2UiLCAicm9sZSI6ICJjcmVhdG9yIiwgInRlbmFudCI6ICJhY21lIiwgImV4c",
    "CI6IDQxMDI0NDQ4MDB9.I1ga-MsL74VY2NYe0p0iglfHXznRfKFqyfOUylfVGLGPdfecWgvSi8imLQjpOubFEgf_5c",
    "hNBqGAmx3KdnnJGakvOKZwDZMivMIn47Ds4IhFOXcQz-MrVP7IEXfcQNSeHy1InaFVn42_q6F1wOhvlIJxMs0AcfML",
    "rQ06cZXCTXb3ODGAT-SUzT0ZKIslvQJXw2ib5uyswAn0TIlp9X9eilbtKn6_hAPsJWz1WK16Es61nSa--HQ2udhMmV",
    "n2VdERxmItXq3iEBZfzvRbkZ0Ldv__B4OefSdZ3IuBXf3sdPNgmscmgrrEKkhTnjNIP_jn10LAepujSj7qvepYgjOr",
    "bg",
);
const PS256: &str = concat!(
    "eyJhbGciOiAiUFMyNTYiLCAia2lkIjogInAifQ.eyJpc3MiOiAiaHR0cHM6Ly9pZC5leGFtcGxlIiwgImF1ZCI6ICJ",
    "taWxscmFjZSIsICJzdWIiOiAiYWxpY2UiLCAicm9sZSI6ICJjcmVhdG9yIiwgInRlbmFudCI6ICJhY21lIiwgImV4c",
    "CI6IDQxMDI0NDQ4MDB9.JWLyGwY2EXHUALNS0_g5xJ_VQTzeQfeF6KsNDs9Lhr-aNFLNT53pLtscQTkxccVWgMbfwM",
    "pz06yhfnSkGl3ooOR0Yr5BDeOSlfJwt4Z93Spajgj1H9gFYnDX6gHDWKa32UIE74C6JjqCL5MtnEaUKSrzHwM-89n4",
    "AIhmlVNVwuoSzJTTXlNhy4Vxw6ZSeIh0S-1wXTEKvDk4LuCQ7QK5tqIe-i1afEHIYLk_NNkBGLqa7YDeH_mp75pSFM",
    "S3nJm1GLB5JCxdwEU-T9iPunbZSVlMJOrBBCNI0p8-ZbohYbvJvBLuKX6nDf5uWwyanoh23F-R78yozWrrq9bnFOR9",
    "Rg",
);

fn jwt() -> Jwt {
    Jwt {
        jwks: Jwks::File("jwks.json".into()),
        issuer: "https://id.example".to_owned(),
        audience: vec!["millrace".to_owned(), "other".to_owned()],
        leeway: std::time::Duration::from_secs(30),
        name_claim: "sub".to_owned(),
        role_claim: "role".to_owned(),
        tenant_claim: "tenant".to_owned(),
        roles: Default::default(),
        role: None,
        tenant: None,
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// One key of each kind, and tokens signed by them.
struct Issuer {
    ed: Ed25519KeyPair,
    ec: EcdsaKeyPair,
    secret: Vec<u8>,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random).unwrap();
        Self {
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            ec,
            secret: b"0123456789abcdef".repeat(3),
        }
    }

    fn jwks(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        json!({ "keys": [
            { "kid": "d", "kty": "OKP", "crv": "Ed25519", "x": encode(self.ed.public_key()) },
            { "kid": "e", "kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..]) },
            { "kid": "s", "kty": "oct", "k": encode(&self.secret) },
            { "kid": "r", "kty": "RSA", "n": MODULUS, "e": "AQAB", "use": "sig" },
            { "kid": "p", "kty": "RSA", "n": MODULUS, "e": "AQAB", "alg": "PS256" },
        ] })
    }

    fn tokens(&self, jwt: Jwt) -> Tokens {
        let tokens = Tokens::new(jwt, &Metrics::new(&Registry::new()).unwrap());
        tokens.exchange(KeySet::parse(self.jwks().to_string().as_bytes(), Origin::File).unwrap());
        tokens
    }

    /// A token of exactly these bytes as header and claims, signed as `algorithm` says, whatever the header says.
    fn sign(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let by_hmac = |secret: &[u8]| {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
            ring::hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
        };
        let signature = match algorithm {
            "EdDSA" => self.ed.sign(message.as_bytes()).as_ref().to_vec(),
            "ES256" => self.ec.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec(),
            "HS256" => by_hmac(&self.secret),
            // What an attacker knows: public keys, as their bytes stand in the set or in the clear.
            "HS256 by n" => by_hmac(MODULUS.as_bytes()),
            "HS256 by raw n" => by_hmac(&URL_SAFE_NO_PAD.decode(MODULUS).unwrap()),
            "HS256 by point" => by_hmac(self.ec.public_key().as_ref()),
            "nothing" => Vec::new(),
            other => panic!("{other}"),
        };
        format!("{message}.{}", encode(signature))
    }

    fn good(&self, claims: &Value) -> String {
        self.sign("EdDSA", r#"{"alg":"EdDSA","kid":"d"}"#, &claims.to_string())
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "millrace", "sub": "alice", "role": "creator", "tenant": "acme",
        "exp": unix_now_s() + 600,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut all = claims();
    match value {
        Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
        value => all[name] = value,
    }
    all
}

#[test]
fn each_kind_of_key_lets_its_tokens_in() {
    let issuer = Issuer::new();
    let tokens = issuer.tokens(jwt());
    let text = claims().to_string();
    for token in [
        issuer.sign("EdDSA", r#"{"alg":"EdDSA","kid":"d"}"#, &text),
        issuer.sign("EdDSA", r#"{"alg":"EdDSA","typ":"at+jwt"}"#, &text),
        issuer.sign("ES256", r#"{"alg":"ES256","kid":"e"}"#, &text),
        issuer.sign("HS256", r#"{"alg":"HS256","kid":"s"}"#, &text),
        RS256.to_owned(),
        PS256.to_owned(),
    ] {
        let principal = tokens.find(token.as_bytes()).unwrap();
        let seen = (principal.name.as_str(), principal.role, principal.tenant.as_str(), &*principal.id);
        assert_eq!(seen, ("alice", Role::Creator, "acme", "token acme alice"));
    }
}

#[test]
fn a_token_that_was_not_signed_so_lets_nobody_in() {
    let issuer = Issuer::new();
    let tokens = issuer.tokens(jwt());
    let text = claims().to_string();
    let refused = |token: &str| match tokens.find(token.as_bytes()) {
        Err(Refused::Bad(why)) => why,
        other => panic!("{token}: {other:?}"),
    };
    // A key's algorithm is the key's business.
    for (algorithm, header) in [
        ("HS256 by n", r#"{"alg":"HS256","kid":"r"}"#),
        ("HS256 by raw n", r#"{"alg":"HS256","kid":"r"}"#),
        ("HS256 by point", r#"{"alg":"HS256","kid":"e"}"#),
        ("HS256", r#"{"alg":"HS384","kid":"s"}"#),
        ("EdDSA", r#"{"alg":"EdDSA","kid":"e"}"#),
        ("nothing", r#"{"alg":"EdDSA","kid":"s"}"#),
    ] {
        let why = refused(&issuer.sign(algorithm, header, &text));
        assert_eq!(why, "its algorithm is not that of its key", "{algorithm} {header}");
    }
    let confused =
        RS256.replace(&encode(r#"{"alg": "RS256", "kid": "r"}"#), &encode(r#"{"alg":"RS256","kid":"p"}"#));
    assert_ne!(confused, RS256);
    assert_eq!(refused(&confused), "its algorithm is not that of its key");
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None","kid":"d"}"#,
        r#"{"alg":"nOnE","kid":"d"}"#,
        r#"{"alg":"","kid":"d"}"#,
        r#"{"kid":"d"}"#,
        r#"{"alg":["EdDSA"],"kid":"d"}"#,
        r#"{"alg":"none","alg":"EdDSA","kid":"d"}"#,
        r#"{"alg":"EdDSA","kid":"d","kid":"e"}"#,
        r#"["EdDSA"]"#,
        "",
    ] {
        for algorithm in ["nothing", "EdDSA"] {
            assert_eq!(
                refused(&issuer.sign(algorithm, header, &text)),
                "its header cannot be read",
                "{header}"
            );
        }
    }
    for header in [
        r#"{"alg":"EdDSA","kid":"d","crit":["exp"]}"#,
        r#"{"alg":"EdDSA","kid":"d","crit":[],"b64":false}"#,
        r#"{"alg":"EdDSA","kid":"d","zip":"DEF"}"#,
    ] {
        assert!(refused(&issuer.sign("EdDSA", header, &text)).contains("crit"), "{header}");
    }
    // The key that a token brings along is nobody's.
    let own =
        json!({ "alg": "EdDSA", "kid": "e", "jwk": issuer.jwks()["keys"][0], "jku": "https://evil.example" });
    assert_eq!(
        refused(&issuer.sign("EdDSA", &own.to_string(), &text)),
        "its algorithm is not that of its key"
    );
    let header = r#"{"alg":"EdDSA","kid":"x"}"#;
    assert_eq!(tokens.find(issuer.sign("EdDSA", header, &text).as_bytes()), Err(Refused::UnknownKey));
    let header = r#"{"alg":"RS256"}"#;
    assert!(tokens.find(issuer.sign("EdDSA", header, &text).as_bytes()).is_err());

    let good = issuer.good(&claims());
    assert!(tokens.find(good.as_bytes()).is_ok());
    for end in 0..good.len() {
        let _ = refused(&good[..end]);
    }
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = message.split_once('.').unwrap();
    let other = encode(with("role", json!("operator")).to_string());
    for forged in [
        format!("{head}.{other}.{signature}"),
        format!("{message}."),
        format!("{message}.{}", encode([0; 64])),
        format!("{message}.{signature}="),
        format!("{message}.{signature}A"),
        format!("{message}.{signature}.{signature}"),
        format!("{head}..{signature}"),
        format!("{head}.{body}=.{signature}"),
        format!("eyJ.{body}.{signature}"),
        "..".to_owned(),
        good.to_uppercase(),
        format!("{good}{}", "A".repeat(BYTES_MAX)),
        format!("{head}.{}.{signature}", "A".repeat(BYTES_MAX)),
    ] {
        let _ = refused(&forged);
    }
    for (at, _) in message.char_indices() {
        let mut changed = good.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(tokens.find(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_token_must_be_for_us_by_whom_we_believe_and_now() {
    let issuer = Issuer::new();
    let tokens = issuer.tokens(jwt());
    let now = unix_now_s();
    for (name, value, wants) in [
        ("exp", Value::Null, "it lacks one of"),
        ("exp", json!(now - 31), "it has expired"),
        ("exp", json!((now - 31).to_string()), "it lacks one of"),
        ("exp", json!(-1), "it lacks one of"),
        ("exp", json!(1e300), "it lacks one of"),
        ("nbf", json!(now + 40), "it is not valid yet"),
        ("nbf", json!("soon"), "its exp or nbf is no time"),
        ("iss", Value::Null, "it lacks one of"),
        ("iss", json!("https://id.example/"), "its issuer"),
        ("iss", json!(["https://id.example"]), "its issuer"),
        ("iss", json!(1), "it lacks one of"),
        ("aud", Value::Null, "it lacks one of"),
        ("aud", json!("somebody"), "this audience"),
        ("aud", json!([]), "this audience"),
        ("aud", json!(["a", "b"]), "this audience"),
        ("aud", json!({ "millrace": 1 }), "it lacks one of"),
    ] {
        let found = tokens.find(issuer.good(&with(name, value.clone())).as_bytes());
        assert!(matches!(&found, Err(Refused::Bad(why)) if why.contains(wants)), "{name} {value}: {found:?}");
    }
    for (name, value) in [
        ("exp", json!(now - 25)),
        ("exp", json!(now as f64 + 0.5)),
        ("exp", json!(u64::MAX)),
        ("nbf", json!(now + 20)),
        ("aud", json!(["x", "other"])),
    ] {
        let found = tokens.find(issuer.good(&with(name, value.clone())).as_bytes());
        assert!(found.is_ok(), "{name} {value}: {found:?}");
    }
    let text = claims().to_string();
    for twice in [
        text.replace(r#""sub""#, r#""sub":"bob","sub""#),
        text.replace(r#""role""#, r#""role":"viewer","role""#),
        text.replace(r#""tenant""#, r#""tenant":"evil","tenant""#),
        text.replace(r#""exp""#, r#""exp":1,"exp""#),
        text.replace(r#""iss""#, r#""\u0069ss":"x","iss""#),
    ] {
        assert_ne!(twice, text);
        let token = issuer.sign("EdDSA", r#"{"alg":"EdDSA","kid":"d"}"#, &twice);
        assert_eq!(
            tokens.find(token.as_bytes()),
            Err(Refused::Bad("it cannot be read".to_owned())),
            "{twice}"
        );
    }
}

#[test]
fn claims_say_who_in_the_words_of_the_configuration() {
    let issuer = Issuer::new();
    let mut jwt = jwt();
    let found = |jwt: &Jwt, claims: &Value| issuer.tokens(jwt.clone()).find(issuer.good(claims).as_bytes());
    for (name, value) in [
        ("sub", Value::Null),
        ("sub", json!(7)),
        ("sub", json!("")),
        ("sub", json!("two words")),
        ("sub", json!("a\r\nmillrace-role: operator")),
        ("sub", json!("josé")),
        ("sub", json!("x".repeat(129))),
        ("role", Value::Null),
        ("role", json!("root")),
        ("role", json!("Operator")),
        ("role", json!({ "operator": true })),
        ("tenant", Value::Null),
        ("tenant", json!("")),
        ("tenant", json!("a/b")),
        ("tenant", json!(["acme"])),
    ] {
        let found = found(&jwt, &with(name, value.clone()));
        assert!(
            matches!(&found, Err(Refused::Stranger(why)) if why.contains(name)),
            "{name} {value}: {found:?}"
        );
    }
    for (value, role) in [
        (json!(["viewer", "admin", 3, "root"]), Role::Admin),
        (json!("openid viewer profile"), Role::Viewer),
        (json!("operator"), Role::Operator),
    ] {
        assert_eq!(found(&jwt, &with("role", value)).unwrap().role, role);
    }

    jwt.role_claim = "/realm_access/roles".to_owned();
    jwt.tenant_claim = "https://millrace.example/tenant".to_owned();
    jwt.name_claim = "email".to_owned();
    jwt.roles = [("video team".to_owned(), Role::Creator), ("ops".to_owned(), Role::Operator)].into();
    let mut all = claims();
    all["email"] = json!("a@b.example");
    all["realm_access"] = json!({ "roles": ["admin", "video team"] });
    all["https://millrace.example/tenant"] = json!("t-1");
    let principal = found(&jwt, &all).unwrap();
    assert_eq!(
        (principal.name.as_str(), principal.role),
        ("a@b.example", Role::Creator),
        "admin is not mapped"
    );
    assert_eq!(principal.tenant, "t-1");
    (jwt.role, jwt.tenant) = (Some(Role::Viewer), Some("everybody".to_owned()));
    let mut all = claims();
    all["email"] = json!("a@b.example");
    let principal = found(&jwt, &all).unwrap();
    assert_eq!((principal.role, principal.tenant.as_str()), (Role::Viewer, "everybody"));
    all["realm_access"] = json!({ "roles": null });
    assert_eq!(found(&jwt, &all).unwrap().role, Role::Viewer);
    for unknown in [json!(["admin", "viewer"]), json!([]), json!(""), json!(7), json!("viewer")] {
        all["realm_access"] = json!({ "roles": unknown });
        let found = found(&jwt, &all);
        assert!(
            matches!(&found, Err(Refused::Stranger(why)) if why.contains("/realm_access/roles")),
            "it names a role, if none that is known: {unknown}: {found:?}"
        );
    }
}

#[test]
fn a_token_is_checked_once_and_again_when_its_key_may_be_gone() {
    let issuer = Issuer::new();
    let tokens = issuer.tokens(jwt());
    let token = issuer.good(&claims());
    let looked = || (tokens.hits.get(), tokens.misses.get());
    let first = tokens.find(token.as_bytes()).unwrap();
    for _ in 0..9 {
        assert!(Arc::ptr_eq(&tokens.find(token.as_bytes()).unwrap(), &first));
    }
    assert_eq!(looked(), (9, 1));
    let mut jwks = issuer.jwks();
    tokens.exchange(KeySet::parse(jwks.to_string().as_bytes(), Origin::File).unwrap());
    assert!(tokens.find(token.as_bytes()).is_ok());
    assert_eq!(looked(), (9, 2), "another set may be without its key");
    jwks["keys"].as_array_mut().unwrap().remove(0);
    tokens.exchange(KeySet::parse(jwks.to_string().as_bytes(), Origin::File).unwrap());
    assert_eq!(tokens.find(token.as_bytes()), Err(Refused::UnknownKey), "revoked while it was known");
    let forged = Issuer::new();
    let mut jwks = issuer.jwks();
    jwks["keys"][0] = forged.jwks()["keys"][0].clone();
    tokens.exchange(KeySet::parse(jwks.to_string().as_bytes(), Origin::File).unwrap());
    assert!(matches!(tokens.find(token.as_bytes()), Err(Refused::Bad(_))), "another key of the same name");
}

#[test]
fn a_known_token_ends_with_its_time() {
    let issuer = Issuer::new();
    let mut jwt = jwt();
    jwt.leeway = std::time::Duration::ZERO;
    let tokens = issuer.tokens(jwt);
    let token = issuer.good(&with("exp", json!(unix_now_s() + 1)));
    assert!(tokens.find(token.as_bytes()).is_ok() && tokens.find(token.as_bytes()).is_ok());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while tokens.find(token.as_bytes()).is_ok() {
        assert!(std::time::Instant::now() < end, "it never ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(tokens.find(token.as_bytes()), Err(Refused::Bad("it has expired".to_owned())));
}

#[test]
fn without_a_set_of_keys_nobody_can_tell() {
    let tokens = Tokens::new(jwt(), &Metrics::new(&Registry::new()).unwrap());
    assert_eq!(tokens.find(RS256.as_bytes()), Err(Refused::NoKeys));
}
