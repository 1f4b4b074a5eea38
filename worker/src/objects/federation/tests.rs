use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;

/// Google's two services: it exchanges the token `pod` only, and acts for one account only. Counts exchanges.
struct Google {
    url: String,
    exchanges: Arc<AtomicU64>,
    directory: tempfile::TempDir,
}

async fn exchange(
    State((exchanges, _)): State<(Arc<AtomicU64>, i64)>,
    body: String,
) -> (StatusCode, Json<Value>) {
    let form: Vec<(String, String)> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(field("grant_type"), Some("urn:ietf:params:oauth:grant-type:token-exchange"));
    assert_eq!(field("audience"), Some("//iam.googleapis.com/projects/1/x/providers/peer-aws"));
    assert_eq!(field("subject_token_type"), Some("urn:ietf:params:oauth:token-type:jwt"));
    if field("subject_token") != Some("pod") {
        let said = json!({ "error": "invalid_grant", "error_description": "the issuer is a stranger" });
        return (StatusCode::BAD_REQUEST, Json(said));
    }
    let nth = exchanges.fetch_add(1, Ordering::Relaxed) + 1;
    let token = json!({ "access_token": format!("federated-{nth}"), "expires_in": 3600 });
    (StatusCode::OK, Json(token))
}

async fn act(
    State((_, lasts_s)): State<(Arc<AtomicU64>, i64)>,
    headers: HeaderMap,
    Json(asked): Json<Value>,
) -> Json<Value> {
    assert_eq!(asked["scope"][0], SCOPE);
    let shown = headers["authorization"].to_str().unwrap().replace("Bearer federated", "acting");
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(lasts_s);
    Json(json!({ "accessToken": shown, "expireTime": until.to_string() }))
}

impl Google {
    async fn start(lasts_s: i64) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exchanges = Arc::new(AtomicU64::new(0));
        let router = Router::new()
            .route("/v1/token", post(exchange))
            .route("/v1/projects/-/serviceAccounts/w@p.iam:generateAccessToken", post(act))
            .with_state((Arc::clone(&exchanges), lasts_s));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let google = Self { url, exchanges, directory: tempfile::tempdir().unwrap() };
        google.put("token", "pod\n");
        google
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// What `gcloud … create-cred-config --credential-source-file` writes.
    fn file(&self) -> Value {
        json!({
            "universe_domain": "googleapis.com",
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/x/providers/peer-aws",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/v1/token", self.url),
            "credential_source": { "file": self.directory.path().join("token"), "format": { "type": "text" } },
            "service_account_impersonation_url":
                format!("{}/v1/projects/-/serviceAccounts/w@p.iam:generateAccessToken", self.url),
        })
    }

    fn federation(&self, file: &Value) -> Result<Option<Federation>, String> {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Federation::read(&self.put("gcs.json", &file.to_string()), &http)
    }
}

#[tokio::test]
async fn a_pods_token_becomes_the_service_accounts_and_is_kept_while_it_holds() {
    let google = Google::start(3600).await;
    let federation = Arc::new(google.federation(&google.file()).unwrap().unwrap());
    let tokens = futures::future::join_all((0..8).map(|_| federation.get_credential())).await;
    assert!(tokens.iter().all(|token| token.as_ref().unwrap().bearer == "acting-1"));
    assert_eq!(google.exchanges.load(Ordering::Relaxed), 1, "many at once are one exchange");
    let signer = SignsAs(federation).get_credential().await.unwrap();
    assert!(signer.email == "w@p.iam" && signer.private_key.is_none());
}

#[tokio::test]
async fn a_token_that_ends_is_replaced_by_what_the_pod_has_then() {
    let google = Google::start(0).await;
    let mut file = google.file();
    file["credential_source"]["format"] = json!({ "type": "json", "subject_token_field_name": "id_token" });
    google.put("token", "{\"id_token\":\"pod\"}");
    let federation = google.federation(&file).unwrap().unwrap();
    assert_eq!(federation.get_credential().await.unwrap().bearer, "acting-1");
    assert_eq!(federation.get_credential().await.unwrap().bearer, "acting-2");
    google.put("token", "{\"id_token\":\"somebody's\"}");
    let refused = federation.get_credential().await.unwrap_err();
    let said = format!("{refused} {:?}", std::error::Error::source(&refused));
    assert!(
        said.contains("the exchange of the pod's token: 400 Bad Request: the issuer is a stranger"),
        "{said}"
    );
    assert!(!said.contains("somebody"), "a token is nobody's to read: {said}");
}

#[tokio::test]
async fn what_cannot_work_is_refused_when_it_is_read_and_other_kinds_are_left_to_the_library() {
    let google = Google::start(3600).await;
    assert!(google.federation(&json!({ "type": "service_account" })).unwrap().is_none());
    let mut aws = google.file();
    aws["credential_source"] = json!({ "environment_id": "aws1", "url": "http://169.254.169.254/x" });
    assert!(google.federation(&aws).unwrap_err().contains("must name a file"));
    let mut plain = google.file();
    plain["token_url"] = json!("http://sts.example.com/v1/token");
    assert!(google.federation(&plain).unwrap_err().contains("must be https"));
    let mut half = google.file();
    half.as_object_mut().unwrap().remove("audience");
    assert!(google.federation(&half).unwrap_err().contains("missing field `audience`"));

    let mut nowhere = google.file();
    nowhere["credential_source"]["file"] = json!("/no/such/token");
    let error = google.federation(&nowhere).unwrap().unwrap().get_credential().await.unwrap_err();
    assert!(error.to_string().contains("/no/such/token"), "{error}");
    let mut nobody = google.file();
    nobody.as_object_mut().unwrap().remove("service_account_impersonation_url");
    let federation = Arc::new(google.federation(&nobody).unwrap().unwrap());
    assert_eq!(federation.get_credential().await.unwrap().bearer, "federated-1");
    assert!(SignsAs(federation).get_credential().await.is_err(), "nobody signs");
}
