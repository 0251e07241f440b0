// Node 20's fetch ignores HTTPS_PROXY; undici's agent makes it look there.
import { EnvHttpProxyAgent, setGlobalDispatcher, fetch, Headers, Request, Response, FormData } from "undici";

setGlobalDispatcher(new EnvHttpProxyAgent());
Object.assign(globalThis, { fetch, Headers, Request, Response, FormData });
